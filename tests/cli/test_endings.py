"""How commands end: full disks, closed pipes and streams, signals at any moment, terminals of no width."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reference_dumps
from tests.draws import draws
from tests.gguf_files import V, write_llama

MODEL = str(Path(reference_dumps.__file__).parent / "llama-3" / "model.gguf")
DUMP = str(Path(MODEL).parent / "runs" / "one-by-one.safetensors")
COMMAND = [sys.executable, "-m", "llama_ckpt"]
COMMANDS = {
    "help": ["--help"],
    "compare": ["compare", DUMP, "--model", MODEL],
    "explain": ["explain", "3"],
    "help of a command": ["validate", "--help"],
    "inspect": ["inspect", MODEL, "--tensors"],
    "generate": ["generate", "--model", MODEL, "--tokens", "1,2", "--max-tokens", "2"],
    "json": ["compare", DUMP, "--model", MODEL, "--json", "-"],
}


def run(words: list[str], shell: str, **environment: str) -> tuple[int, str]:
    """A command in a shell that does something to its streams; the exit code and standard error."""
    script = f'"$@" {shell}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, *words],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | environment,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", list(COMMANDS)[: draws(3, 7)])
def test_nobody_reads_and_a_full_disk(name: str) -> None:
    code, said = run(COMMANDS[name], "| true; exit ${PIPESTATUS[0]}")
    assert code == 141 and "Traceback" not in said and "llama-ckpt: error" not in said
    code, said = run(COMMANDS[name], "> /dev/full")
    assert code == 2
    assert said.splitlines()[-1] == "llama-ckpt: error: the output cannot be written: No space left on device"
    assert "Traceback" not in said


def test_closed_streams() -> None:
    for closed in (">&- 2>&-", "<&-"):
        code, said = run(COMMANDS["inspect"], f"{closed} | cat > /dev/null; exit ${{PIPESTATUS[0]}}")
        assert (code, said) == (0, ""), closed
    code, _ = run(["inspect", "/no/such/file"], "2> /dev/full")
    assert code == 2


def test_a_report_on_a_full_disk_is_a_sentence() -> None:
    code, said = run([*COMMANDS["compare"], "--json", "/dev/full"], "")
    assert code == 2 and said == "llama-ckpt: error: cannot write /dev/full: got No space left on device\n"


@pytest.mark.parametrize("columns", ["0", "-1", "", "wide", "\u0663"])
def test_a_terminal_of_no_width(columns: str) -> None:
    assert run(COMMANDS["explain"], "> /dev/null", COLUMNS=columns) == (0, "")


def test_signals_at_any_moment(tmp_path: Path) -> None:
    """A sentence and the signal's code, or the command was faster; no traceback, no half of a report."""
    report = tmp_path / "report.json"
    for draw in range(draws(4, 16)):
        number = (signal.SIGINT, signal.SIGTERM)[draw % 2]
        process = subprocess.Popen(
            [*COMMAND, *COMMANDS["compare"], "--json", str(report)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        time.sleep(0.35 + 0.11 * draw)  # the interpreter itself starts before
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        if process.returncode != 0:
            wanted = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}[number]
            # A shell counts death by a signal the same, and Python dies so where it was loading.
            assert process.returncode in (wanted[0], -number)
            assert said in (f"llama-ckpt: error: {wanted[1]}\n", "")
        assert not list(tmp_path.glob(".*"))
        assert not report.exists() or report.read_text().endswith("}\n")


def test_no_name_in_a_file_reaches_a_terminal_as_it_is(tmp_path: Path) -> None:
    name = "\x1b]0;pwned\x07\x1b[31mX\npass: every tensor\u202e"
    path = write_llama(tmp_path / "m.gguf", keys={"general.name": (name, V.STRING)})
    for words in (["inspect", str(path)], ["compare", DUMP, "--model", str(path)]):
        done = subprocess.run([*COMMAND, *words], capture_output=True, text=True)
        shown = done.stdout + done.stderr
        assert shown and all(line.isprintable() for line in shown.splitlines())
        assert not any(line.startswith("pass: every") for line in shown.splitlines())
