"""Without torch and the worker's packages: five commands work, and every other says what to install.

The packages are installed here: None among the modules, as Python has it, hides them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llama_ckpt.parts import PARTS, install_line
from reference_dumps import dump_folder, embedded_model

HIDDEN = f"import sys\nsys.modules.update(dict.fromkeys({sorted(PARTS)}))\n"
MODEL = str(embedded_model())


def ran(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDDEN + code, *arguments], check=False, capture_output=True, text=True
    )


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return ran("from llama_ckpt.cli import main\nmain()", *arguments)


def test_what_judges_and_reads_needs_neither_torch_nor_a_server(tmp_path: Path) -> None:
    dump = dump_folder("f32") / "hello.safetensors"
    for arguments, code, said in (
        (("compare", str(dump), "--partial"), 0, "every point within its limits"),
        (
            ("export", "--model", MODEL, "--layout", "hf", "--out", str(tmp_path / "x.safetensors")),
            0,
            "bytes",
        ),
        (("inspect", MODEL), 0, "every tensor of a Llama is there"),
        (("tokenize", "--model", MODEL, "Hello world"), 0, "[1, 15043, 3186]"),
        (("explain", "3"), 0, "attention"),
        (("compare-weights", MODEL, MODEL), 0, "291 equal"),
        (("example", "C++"), 0, "class DumpWriter"),
        (("example", "cobol"), 2, ""),
    ):
        done = command(*arguments)
        assert done.returncode == code and said in done.stdout, (arguments, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [("validate",), ("generate", "--model", MODEL, "Hi"), ("bench", "--model", MODEL), ("check-worker",)],
)
def test_what_computes_says_in_one_line_what_to_install(arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    package, part = ("starlette", "worker") if arguments[0] == "check-worker" else ("torch", "torch")
    sentence = f"llama-ckpt {arguments[0]} needs {package}, which is not installed; {install_line(part)}"
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"llama-ckpt: error: {sentence}"]


def test_the_library_says_it_too() -> None:
    done = ran(f"import llama_ckpt as lc\ntry: lc.load({MODEL!r})\nexcept lc.LlamaCkptError as e: print(e)")
    assert (
        done.stdout.strip() == f"llama_ckpt.load needs torch, which is not installed; {install_line('torch')}"
    )


def test_the_worker_says_it_before_it_listens() -> None:
    options = ("--model", MODEL, "--worker-id", "w", "--port", "1", "--callback-url", "http://127.0.0.1:2")
    done = ran("from llama_ckpt.worker.__main__ import main\nmain()", *options)
    assert done.returncode == 2
    assert "llama-ckpt-worker needs" in done.stderr and len(done.stderr.splitlines()) == 1


ELSEWHERE = """
import os, signal, sys
sys.modules.update(dict.fromkeys(["fcntl", "pwd", "grp", "resource", "termios", "tty", "pty"]))
for name in ("SIGALRM", "SIGBUS", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
for name in ("fork", "getuid", "geteuid", "sched_getaffinity", "killpg", "mkfifo", "O_NOFOLLOW"):
    if hasattr(os, name):
        delattr(os, name)
"""
"""Takes away what Windows, or macOS, does not have."""


def test_the_light_commands_need_nothing_that_one_system_alone_has(tmp_path: Path) -> None:
    dump = dump_folder("f32") / "hello.safetensors"
    for arguments, said in (
        (("compare", str(dump), "--partial", "--html", str(tmp_path / "x.html")), "within its limits"),
        (("export", "--model", MODEL, "--out", str(tmp_path / "x.safetensors")), "bytes"),
        (("inspect", MODEL), "every tensor of a Llama is there"),
        (("tokenize", "Hello world"), "[1, 15043, 3186]"),
    ):
        done = ran(ELSEWHERE + "from llama_ckpt.cli import main\nmain()", *arguments)
        assert done.returncode == 0 and said in done.stdout, (arguments, done.stderr[-2000:])
