"""What computes a text: said, and refused where what was asked for contradicts itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import llama_ckpt as lc
from llama_ckpt.cli import app
from llama_ckpt.errors import DeviceError, OptionError, UnsupportedModelError
from llama_ckpt.generation import computed_by, pick_session
from llama_ckpt.worker.model_process import in_half_without_engine
from tests.gguf_files import write_llama

CUDA = torch.device("cuda")  # only named: what is picked is decided before anything computes


def test_the_cpu_computes_by_the_layers_in_their_dtype(embedded_model: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        model = lc.load(embedded_model, device="cpu", dtype=dtype)
        assert computed_by(model) == f"the layers in {dtype} on cpu"


def test_a_dtype_that_was_asked_for_takes_the_layers_on_cuda(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "model.gguf")
    for dtype in ("float16", "bfloat16"):
        model = replace(lc.load(path, device="cpu", dtype=dtype), device=CUDA)
        assert pick_session(model) is None
        why = f"not the engine: {dtype} was asked for, and it has precisions of its own"
        assert computed_by(model) == f"the layers in {dtype} on cuda, {why}"
        assert computed_by(model, "layers") == f"the layers in {dtype} on cuda"


def test_a_model_that_the_engine_cannot_run_says_why(tmp_path: Path) -> None:
    model = replace(lc.load(write_llama(tmp_path / "model.gguf", width=80), device="cpu"), device=CUDA)
    why = "not the engine: width is 80, not a multiple of 32"
    assert computed_by(model) == f"the layers in float32 on cuda, {why}"
    with pytest.raises(UnsupportedModelError, match="width is 80, not a multiple of 32"):
        pick_session(model, "high")
    served = in_half_without_engine(model)
    assert computed_by(served) == f"the layers in float16 on cuda, {why}"


def test_the_worker_asks_for_half_only_where_the_layers_compute_on_cuda(tmp_path: Path) -> None:
    on_cpu = lc.load(write_llama(tmp_path / "model.gguf"), device="cpu")
    assert in_half_without_engine(on_cpu).dtype == torch.float32
    assert in_half_without_engine(replace(on_cpu, device=CUDA)).dtype == torch.float32, "the engine runs it"


def test_the_engine_asked_for_where_it_cannot_run_is_refused(embedded_model: Path) -> None:
    model = lc.load(embedded_model, device="cpu")
    with pytest.raises(DeviceError, match="the engine's model: got"):
        next(lc.generate(model, "Hello", 2, precision="fast"))


def test_a_dtype_beside_the_engines_precision_is_refused(embedded_model: Path) -> None:
    model = lc.load(embedded_model, device="cpu", dtype="float16")
    with pytest.raises(OptionError, match="dtype with precision high: got float16, wanted float32"):
        next(lc.generate(model, "Hello", 2, precision="high"))
    with pytest.raises(OptionError, match="precision: got low, wanted auto, fast, high or layers"):
        next(lc.generate(model, "Hello", 2, precision="low"))  # type: ignore[arg-type]


def test_the_command_says_what_computes() -> None:
    words = ["generate", "Hello", "--max-tokens", "2", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--dtype", "bfloat16"])
    assert done.exit_code == 0 and "computed by the layers in bfloat16 on cpu" in done.stderr
    asked = CliRunner().invoke(app, [*words, "--dtype", "bfloat16", "--precision", "fast"])
    assert asked.exit_code == 2 and "dtype with precision fast: got bfloat16" in asked.stderr
