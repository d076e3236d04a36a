"""Starting the recorder's process, and saying what happened if it does not come back.

The reference crashes sometimes: an assertion aborts it, a build for other instructions is
killed by a signal. That must be a sentence for the user, and nothing else.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llama_ckpt import errors
from llama_ckpt.capture.request import Request, write_requests
from llama_ckpt.errors import LlamaCkptError, ReferenceCrashedError, ReferenceMissingError
from llama_ckpt.spawning import python_module

__all__ = ["INSTALL_LINE", "require_reference", "run_recorder"]

INSTALL_LINE = (
    'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON" '
    "pip install llama-cpp-python==0.3.36"
)
"""Installs the reference; without the settings its build crashes on some virtual CPUs."""

LAST_LINES = 5
BAD_INSTRUCTION = (signal.SIGILL, signal.SIGSEGV)


def require_reference() -> None:
    """Check that llama-cpp-python is installed, without loading it.

    Raises:
        ReferenceMissingError: with the line that installs it.
    """
    if find_spec("llama_cpp") is None:
        raise ReferenceMissingError(
            "llama-cpp-python, the reference, is not installed", hint=f"install it: {INSTALL_LINE}"
        )


def run_recorder(requests: Sequence[Request], folder: Path) -> list[dict[str, Any]]:
    """Record requests in a process of its own, which loads their model once.

    Args:
        requests: what to record of one model, at least one; the model's path must be absolute.
        folder: an empty folder; `0.safetensors`, `1.safetensors`, … are left there.

    Returns:
        For each, the fields of the manifest that llama.cpp knows.

    Raises:
        ReferenceMissingError: llama-cpp-python is not installed.
        ReferenceCrashedError: the process ended by a signal or an error of its own.
        LlamaCkptError: what the recorder itself found wrong, in its class.
    """
    require_reference()
    write_requests(requests, folder / "requests.json")
    command, environment = python_module("llama_ckpt.capture.recorder")
    ended = subprocess.run(
        [*command, str(folder)],
        cwd=folder,
        env=environment | {"GGML_NO_BACKTRACE": "1"},  # without ggml's call of a debugger
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if ended.returncode != 0:
        raise _crash(ended.returncode, ended.stdout.decode(errors="replace"), requests[0].model)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if isinstance(results, dict):
        raise _error(*results["error"])
    return list(results)


def _crash(code: int, output: str, model: str) -> ReferenceCrashedError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = " | ".join(lines[-LAST_LINES:]) or "nothing on stderr"
    how = f"exit code {code}" if code > 0 else _signal_name(-code)
    # These two come from instructions that the CPU lacks, or that a virtual one only claims to have.
    hint = f"build it for fewer instructions: {INSTALL_LINE}" if -code in BAD_INSTRUCTION else None
    return ReferenceCrashedError(
        f"llama.cpp crashed in its own process, recording {model}", got=f"{how} after: {last}", hint=hint
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _error(name: str, what: str, got: object, wanted: object, hint: str | None) -> LlamaCkptError:
    """The error that the recorder reported, in its class."""
    found: type[LlamaCkptError] = getattr(errors, name)
    return found(what, got=got, wanted=wanted, hint=hint)
