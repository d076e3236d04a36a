"""The recorder for code that is not torch: any array, no torch, and a dump that says what was kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llama_ckpt as lc
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.dumps.theirs import open_their_dump
from llama_ckpt.errors import OptionError, ShapeError
from tests.comparing.their_programs import HELLO, N_LAYERS, run

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_run_that_was_kept_point_by_point_passes(tmp_path: Path) -> None:
    recorder = lc.Recorder()
    for name, array in run(HELLO).items():
        recorder.keep(name, array)
    recorder.save(tmp_path / "mine.safetensors", token_ids=HELLO)
    report = compare_dump(tmp_path / "mine.safetensors")
    assert report.verdict == "pass" and report.compared == report.of == 3 + 17 * N_LAYERS
    assert open_their_dump(tmp_path / "mine.safetensors").declared.dtype == "float32"


def test_what_was_kept_is_what_was_meant(tmp_path: Path) -> None:
    right = run(HELLO)
    recorder = lc.Recorder()
    for block in (3, 4, 7):
        for point in ("attn_norm", "out"):
            recorder.keep(f"blk.{block}.{point}", right[f"blk.{block}.{point}"])
    recorder.save(tmp_path / "mine.safetensors", token_ids=HELLO)
    report = compare_dump(tmp_path / "mine.safetensors")
    assert report.verdict == "pass" and (report.compared, report.of) == (6, 6)

    recorder.keep("blk.4.ffn_norm", right["blk.4.ffn_norm"])
    recorder.save(tmp_path / "mine.safetensors", token_ids=HELLO)
    (finding,) = compare_dump(tmp_path / "mine.safetensors").findings
    assert finding.message == "ffn_norm is missing in 2 blocks, 3, 7", "kept in some blocks, so meant in all"


class Library:
    """An array of a library that knows numpy by one way alone."""

    def __init__(self, way: str, array: np.ndarray) -> None:
        self.dtype = "library.float32"
        if way == "numpy":
            self.numpy = lambda: array
        elif way == "get":
            self.get = lambda: array
        else:
            self.array = array

    def __dlpack__(self, **how: Any) -> Any:
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


ARRAYS = {
    "a list": X.tolist(),
    "numpy, float16": X.astype(np.float16),
    "numpy, not contiguous": X.T.copy().T,
    "torch, bfloat16, with a gradient": torch.tensor(X, dtype=torch.bfloat16, requires_grad=True),
    "of numpy()": Library("numpy", X),
    "of get()": Library("get", X),
    "of dlpack": Library("dlpack", X),
    "a batch of one": X[None],
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_any_array_is_copied(kind: str) -> None:
    recorder = lc.Recorder()
    recorder.keep("embd", ARRAYS[kind])
    assert np.array_equal(recorder.tensors["embd"], X)
    assert kind == "a list" or recorder.tensors["embd"].dtype == np.float32


def test_a_copy_stays_what_it_was(tmp_path: Path) -> None:
    buffer, recorder = X.copy(), lc.Recorder()
    recorder.keep("embd", buffer)
    buffer[:] = 0
    assert recorder.tensors["embd"].any()


def test_the_precision_is_that_of_what_projections_give(tmp_path: Path) -> None:
    recorder = lc.Recorder()
    for name, dtype in (("embd", np.float32), ("blk.0.q", np.float16), ("logits", np.float32)):
        recorder.keep(name, X.astype(dtype) if name != "blk.0.q" else X[..., None].astype(dtype))
    recorder.save(tmp_path / "mine.safetensors")
    assert open_their_dump(tmp_path / "mine.safetensors").declared.dtype == "float16"


@pytest.mark.parametrize("name", ["blk.0.norm", "attn_norm", "blk.0.logits", "layers.0.q", ""])
def test_a_name_that_is_no_point_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="wanted a point, such as blk.0.attn_norm or logits"):
        lc.Recorder().keep(name, X)


def test_what_is_no_array_or_twice_is_refused() -> None:
    recorder = lc.Recorder()
    with pytest.raises(ShapeError, match="got str, wanted an array of numbers"):
        recorder.keep("embd", "embd")
    with pytest.raises(ShapeError, match="batch of embd: got 2, wanted one sequence"):
        recorder.keep("embd", np.stack((X, X)))
    recorder.keep("embd", X)
    with pytest.raises(ShapeError, match="two tensors in one call"):
        recorder.keep("embd", X)
    with pytest.raises(OptionError, match="tensors: got none"):
        lc.Recorder().save("nowhere.safetensors")


def test_it_needs_no_torch() -> None:
    code = "import llama_ckpt as lc, numpy, sys; lc.Recorder().keep('embd', numpy.ones((2, 3)))\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
