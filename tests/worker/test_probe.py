"""The probe that checkpoint 0 of `validate` takes: it passes a worker that works, and fails what does not."""

from __future__ import annotations

import math
import struct
import time
from pathlib import Path

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.worker.probe import probe_worker

STEPS = [
    "worker starts and announces itself",
    "worker is healthy",
    "worker streams a job",
    "worker stops when told to",
]


def test_a_worker_that_works(embedded_model: Path) -> None:
    began = time.monotonic()
    steps = probe_worker(embedded_model)
    assert [step.name for step in steps] == STEPS
    assert all(step.passed for step in steps), steps
    assert "eth the way of" in steps[2].reason  # llama.cpp's greedy text after "Hello"
    assert sum(step.seconds for step in steps) <= time.monotonic() - began


def test_a_model_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    steps = probe_worker(tmp_path / "text.gguf")
    assert [step.name for step in steps] == STEPS and not any(step.passed for step in steps)
    assert "exit code 2" in steps[0].reason and "GGUF" in steps[0].reason
    assert steps[1].reason == f"not reached: {STEPS[0]!r} failed"


def test_a_model_that_computes_nonsense(reciter_model: Path, tmp_path: Path) -> None:
    """All norms are NaN: the worker starts and is healthy, and its job fails."""
    data = bytearray(reciter_model.read_bytes())
    info = open_gguf(reciter_model).info("output_norm.weight")
    data[info.offset : info.offset + info.nbytes] = struct.pack("<f", math.nan) * (info.nbytes // 4)
    (tmp_path / "nan.gguf").write_bytes(data)
    steps = probe_worker(tmp_path / "nan.gguf")
    assert [step.passed for step in steps] == [True, True, False, False]
    assert "error" in steps[2].reason
