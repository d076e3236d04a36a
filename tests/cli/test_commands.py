"""The command line: what it prints, what it loads, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import llama_ckpt
from llama_ckpt.cli import COMMANDS, app
from llama_ckpt.cli.progress import ProgressBar, waiting
from reference_dumps import dump_folder
from tests.gguf_files import write_llama

COMMAND = (sys.executable, "-m", "llama_ckpt")


def run(*words: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own."""
    return subprocess.run([*COMMAND, *map(str, words)], input=given, capture_output=True)


def answer(*words: str | Path, given: str | bytes = "") -> str:
    """Standard output of a command that has to end well, run in this process."""
    done = CliRunner().invoke(app, [*map(str, words)], input=given)
    assert done.exit_code == 0, done.output
    return done.stdout


def check_refused(*words: str | Path, sentence: str) -> None:
    """The command ends with 2 and says one sentence on standard error."""
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("llama-ckpt: error: ") and done.stderr.count("\n") == 1
    assert sentence in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_of_the_command(command: str) -> None:
    assert f"Example: llama-ckpt {command} " in answer(command, "--help")


def test_help_lists_every_command() -> None:
    shown = answer("--help")
    assert all(f"\n  {command} " in shown for command in COMMANDS)
    for name, line in COMMANDS.items():
        assert line in shown and answer(name, "--help").split("\n\n")[1].strip() == line


def test_version() -> None:
    assert answer("--version") == f"llama_ckpt {llama_ckpt.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [["--help"], *([command, "--help"] for command in COMMANDS), ["inspect"], ["tokenize", "Hello"]],
    ids=" ".join,
)
def test_what_computes_nothing_does_not_load_torch(words: list[str]) -> None:
    code = "import sys\nfrom llama_ckpt.cli import main\nsys.argv[1:] = sys.argv[1:]\n"
    code += "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
    code += "loaded = {'torch', 'checkpoints', 'llama_cpp'} & set(sys.modules)\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        (["--help"], {"numpy", "gguf", "rich", "pydantic"}),
        (["explain", "attn_probs"], {"gguf", "rich", "pydantic"}),
        (["inspect"], {"rich", "pydantic", "llama_ckpt.hugging_face"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_text_waits_for_nothing_that_it_does_not_need(words: list[str], spared: set[str]) -> None:
    code = "import sys\nfrom llama_ckpt.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    code += "print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert not spared & set(done.stderr.split())
    assert len(done.stdout) > 500


@pytest.mark.parametrize(
    "words",
    [
        ["validate", "--model"],
        ["generate", "Hello", "--model"],
        ["tokenize", "Hello", "--model"],
        ["inspect"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_that_is_no_model_is_refused_in_one_sentence(words: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("This is no model.\n" * 10)
    check_refused(*words, text, sentence=str(text))
    check_refused(*words, tmp_path / "missing.gguf", sentence="missing.gguf")
    check_refused(*words, tmp_path, sentence=str(tmp_path))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["validate", "4"], "got 4, wanted one of 0, 1, 1B"),
        (["explain", "99"], "got 99, wanted one of"),
        (["validate", "--dumps", "/nowhere/at/all"], "/nowhere/at/all"),
        (["capture", "--out", "unused"], "got neither, wanted a prompt or tokens"),
        (["capture", "--out", "unused", "--tokens", "1,x"], "--tokens: got '1,x'"),
        (["make-seeded", "--out", "unused", "--shape", "llama-9"], "got llama-9, wanted one of"),
        (["tokenize", "--decode", "[1, true]"], "wanted a JSON list of whole numbers"),
        (["tokenize", "--decode", "hello"], "wanted a JSON list of whole numbers"),
        (["tokenize", "--decode", "[32000]"], "32000"),
        (["generate", "Hello", "--temperature", "-1"], "temperature: got -1.0"),
        (["generate", "Hello", "--max-tokens", "0"], "max_tokens: got 0"),
        (["generate", "Hello", "--stop", ""], "--stop: got an empty text"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(words: list[str], sentence: str) -> None:
    check_refused(*words, sentence=sentence)


@pytest.mark.parametrize(
    "words",
    [["validate", "--device", "tpu"], ["validate", "--nothing"], ["nothing"], ["capture"]],
    ids=" ".join,
)
def test_bad_usage_ends_with_2(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert b"Error: " in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["validate", "0"], ["generate", "Hello"], ["explain", "1"]], ids=" ".join)
def test_a_package_of_the_users_that_hides_ours_is_one_sentence(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "__init__.py").touch()
    done = subprocess.run([*COMMAND, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("llama-ckpt: error: ") and done.stderr.count("\n") == 1
    assert f"got {tmp_path / 'checkpoints'}, which hides it" in done.stderr


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    check_refused("validate", "0", "--json", blocked / "report.json", sentence="Not a directory")


def test_tokenize_arguments() -> None:
    assert answer("tokenize", "Hello", "") == "[1, 15043]\n[1]\n"
    assert answer("tokenize", "--no-bos", "Hello") == "[15043]\n"
    assert answer("tokenize", "--parse-special", "</s>") == "[1, 2]\n"
    assert json.loads(answer("tokenize", "--pieces", "Hello")) == [[1, "<s>"], [15043, " Hello"]]


def test_tokenize_lines_of_standard_input_and_back() -> None:
    lines = b"Hello\n\n  two  spaces\r\nno \xff utf-8\nlast"
    encoded = answer("tokenize", given=lines)
    assert encoded.splitlines()[:2] == ["[1, 15043]", "[1]"]
    decoded = [json.loads(line) for line in answer("tokenize", "--decode", given=encoded).splitlines()]
    assert decoded == ["Hello", "", "  two  spaces\r", "no \ufffd utf-8", "last"]


def test_tokenize_takes_an_argument_that_is_no_utf_8() -> None:
    done = subprocess.run([*COMMAND, "tokenize", b"\xff"], capture_output=True, check=True)
    assert json.loads(done.stdout) == [1, 29871, 258]


def test_tokenize_answers_each_line_at_once() -> None:
    with subprocess.Popen([*COMMAND, "tokenize"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        for text, ids in ((b"Hello\n", b"[1, 15043]\n"), (b"\n", b"[1]\n")):
            process.stdin.write(text)
            process.stdin.flush()
            assert process.stdout.readline() == ids


def test_inspect_marks_what_the_file_leaves_out(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model.gguf", omit_keys=("llama.rope.freq_base",))
    shown = answer("inspect", model)
    assert "default, no llama.rope.freq_base" in shown
    assert json.loads(answer("inspect", model, "--json"))["defaulted"].count("llama.rope.freq_base") == 1


def test_inspect_shows_what_the_file_says(embedded_model: Path) -> None:
    shown = answer("inspect", embedded_model)
    assert "every tensor of a Llama is there" in shown and "default, no llama.rope.freq_base" not in shown
    record = json.loads(answer("inspect", "--model", embedded_model, "--json"))
    assert record["config"]["n_layers"] == 32 and record["config"]["rms_norm_eps"] == pytest.approx(1e-5)
    assert "llama.rope.freq_base" not in record["defaulted"]
    assert {t["type"]: t["count"] for t in record["tensors"]} == {"F16": 226, "F32": 65}
    assert record["computable"] is True and record["reason"] is None


def test_generate_streams_text_that_a_seed_repeats() -> None:
    words = ("generate", "In the beginning", "--max-tokens", "8", "--device", "cpu")
    greedy = answer(*words)
    assert greedy.endswith("\n") and len(greedy) > 8
    drawn = ("--temperature", "1.5", "--top-k", "50", "--seed")
    assert answer(*words, *drawn, "7") == answer(*words, *drawn, "7")
    assert len({answer(*words, *drawn, str(seed)) for seed in range(4)}) > 1
    assert answer("generate", "-", *words[2:], given="In the beginning") == greedy
    assert answer(*words, "--stop", greedy.split()[0]).strip() == ""


def test_make_seeded_writes_a_model_that_inspect_reads(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    words = ("--width 64 --heads 4 --kv-heads 2 --head-dim 32 --ffn 96 --layers 2 --vocab 512").split()
    said = answer("make-seeded", *words, "--type", "Q8_0", "--seed", "3", "--out", out)
    assert said.startswith(f"{out}: {out.stat().st_size} bytes, sha256 ")
    config = json.loads(answer("inspect", out, "--json"))["config"]
    assert (config["n_kv_heads"], config["head_dim"], config["vocab_size"]) == (2, 32, 512)


def test_explain_prints_a_page_and_the_ladder() -> None:
    assert answer("explain", "1b").startswith("# Checkpoint 1B")
    assert "| 1B | " in answer("explain")


def test_a_reader_that_goes_away_is_no_error() -> None:
    lines = b"a long enough line of text\n" * 20_000
    with subprocess.Popen(
        [*COMMAND, "tokenize"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(lines[:27])
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"[1, ")
        process.stdout.close()
        try:
            process.stdin.write(lines)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_a_ladder_that_nobody_watches_any_more_does_not_count_as_failed() -> None:
    with subprocess.Popen(
        [*COMMAND, "validate", "10", "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def hear_interrupts() -> None:
    """A shell starts what it runs in the background deaf to SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interrupt_is_one_sentence() -> None:
    with subprocess.Popen(
        [*COMMAND, "tokenize"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_interrupts,
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"Hello\n")
        process.stdin.flush()
        process.stdout.readline()  # it is at work
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == b"llama-ckpt: error: interrupted\n"


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_shows_after_a_second_and_only_to_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stream, patience, shows in (
        (Terminal(), 0.0, True),
        (Terminal(), 60.0, False),
        (io.StringIO(), 0.0, False),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr("llama_ckpt.cli.progress.PATIENCE", patience)
        with ProgressBar() as bar:
            bar("loading", 0, 0)
            bar("checkpoint 3", 4, 12)
            bar.clear()
            bar("checkpoint 6", 5, 12)
        assert ("checkpoint 6" in stream.getvalue()) is shows


def test_waiting_is_quiet_when_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with waiting("loading"):
        pass
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("llama-ckpt compa", ["compare", "compare-weights"]), ("llama-ckpt compare --ju", ["--junit"])],
)
def test_a_shell_completes_commands_and_options(words: str, wanted: list[str]) -> None:
    program = "import sys; from llama_ckpt.cli import main; sys.argv[0] = 'llama-ckpt'; main()"
    asked = {
        "_LLAMA_CKPT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | asked, check=False, capture_output=True, text=True
    )
    assert done.stdout.split() == wanted


def test_a_bug_report_has_versions_and_verdicts_and_no_paths(tmp_path: Path) -> None:
    found = llama_ckpt.compare(dump_folder("f32") / "hello.safetensors")
    found.save(tmp_path / "report.json")
    done = CliRunner().invoke(
        app, ["report-bug", str(tmp_path / "report.json"), "--command", "compare /a/b.x"]
    )
    record = json.loads(done.stdout)
    assert record["llama_ckpt"] == llama_ckpt.__version__ and record["packages"]["numpy"]
    assert record["report"]["verdict"] == "pass" and len(record["report"]["points"]) == found.compared
    assert str(dump_folder("f32")) not in done.stdout and "token_texts" not in done.stdout
    assert record["report"]["yours"]["path"] == "hello.safetensors"
    (tmp_path / "other.json").write_text("{}")
    done = CliRunner().invoke(app, ["report-bug", str(tmp_path / "other.json")])
    assert done.exit_code == 2
    assert CliRunner().invoke(app, ["report-bug", "--out", str(tmp_path / "bug.json")]).exit_code == 0
    assert json.loads((tmp_path / "bug.json").read_text())["report"] is None
