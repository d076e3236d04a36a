"""What computes a text: said, and refused where what was asked for contradicts itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import llama_ckpt as lc
from llama_ckpt.cli import app
from llama_ckpt.errors import DeviceError, OptionError
from llama_ckpt.generation import computed_by


def test_the_cpu_computes_by_the_layers_in_their_dtype(embedded_model: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        model = lc.load(embedded_model, device="cpu", dtype=dtype)
        assert computed_by(model) == f"the layers in {dtype} on cpu"


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
