"""Run a check under Triton's interpreter, on the CPU."""

from __future__ import annotations

import importlib.util
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
    """What Python code died of, or nothing. It gets a process of its own: Triton reads its switch once."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return done.stderr or f"exit status {done.returncode}" if done.returncode else ""
