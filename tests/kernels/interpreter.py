"""Run a check under Triton's interpreter, on the CPU."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which torch's CPU wheels leave out"
)
"""`make test` installs it where there is a wheel: on Linux."""


def interpreter_failure(code: str) -> str:
    """What Python code died of, or nothing. It runs in a fork of its own: see `interpreter_process`."""
    process = _process()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(code) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"the interpreter's process ended: exit status {process.wait()}"
    return str(json.loads(answer))


@functools.cache
def _process() -> subprocess.Popen[str]:
    """One for all checks of this run: Triton reads its switch when it is imported, and only then."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kernels.interpreter_process"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        process.communicate()  # its standard input ends, and it with it

    atexit.register(end)
    return process
