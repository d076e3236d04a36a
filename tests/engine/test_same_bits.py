"""The engine's bits: the same in fresh processes, replayed or launched, whatever ran before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fast", "high"])
def test_three_fresh_processes_compute_the_same_bits(precision: str) -> None:
    command = [sys.executable, "-m", "tools.same_bits", "--precision", precision]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    digests = [line.split()[-1] for line in done.stdout.splitlines()[:3]]
    assert len(set(digests)) == 1
    assert all(len(digest) == 64 for digest in digests)
