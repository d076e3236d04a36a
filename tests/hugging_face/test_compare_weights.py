"""Two copies of a model: equal, rounded, in the other program's order, or different."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from llama_ckpt.cli import app
from llama_ckpt.hugging_face.compare_weights import compare_weights, comparison_lines
from llama_ckpt.making.export import export_weights
from tests.gguf_files import T, write_llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "m.gguf")


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    export_weights(model, tmp_path / "hf" / "model.safetensors", layout="hf")
    return tmp_path / "hf"


def change(folder: Path, name: str, changed: Callable[[Any], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = np.ascontiguousarray(changed(tensors[name]))
    save_file(tensors, path)


def test_a_folder_and_its_file_are_equal(folder: Path, model: Path) -> None:
    found = list(compare_weights(folder, model))
    assert {one.state for one in found} == {"equal"} and len(found) == 21
    assert list(comparison_lines(found)) == ["21 tensors: 21 equal"]


@pytest.mark.parametrize("type", [T.F16, T.BF16, T.Q8_0, T.Q5_1, T.Q4_0], ids=lambda one: one.name)
def test_what_a_type_rounds_is_no_difference(type: T, folder: Path, tmp_path: Path) -> None:
    states = {one.state for one in compare_weights(folder, write_llama(tmp_path / "q.gguf", type=type))}
    assert states == {"equal", "rounded"}


def test_rows_in_the_other_order_are_named(folder: Path, model: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    change(folder, name, lambda w: w.reshape(2, 2, 8, 64).swapaxes(1, 2).reshape(w.shape))
    (apart,) = [one for one in compare_weights(folder, model) if one.state != "equal"]
    assert (apart.name, apart.state, apart.error) == ("blk.1.attn_k.weight", "permuted", 0.0)
    assert apart.words == "the second's rows are in halves, or the first's were put into pairs twice"
    (apart,) = [one for one in compare_weights(model, folder) if one.state != "equal"]
    assert apart.words == "the first's rows are in halves, or the second's were put into pairs twice"


def test_a_difference_is_told_and_ends_with_1(folder: Path, model: Path) -> None:
    change(folder, "model.layers.0.mlp.up_proj.weight", lambda w: w * 1.01)
    shown = CliRunner().invoke(app, ["compare-weights", str(folder), str(model)])
    assert shown.exit_code == 1
    assert "differs  blk.0.ffn_up.weight" in shown.stdout and "error 1.00e-02" in shown.stdout
    assert "21 tensors: 20 equal, 1 different" in shown.stdout
    shown = CliRunner().invoke(app, ["compare-weights", str(folder), str(model), "--json"])
    assert sum(one["state"] == "differs" for one in json.loads(shown.stdout)) == 1


def test_what_is_missing(model: Path, tmp_path: Path) -> None:
    tied = write_llama(tmp_path / "tied.gguf", tied_output=True)
    (apart,) = [one for one in compare_weights(tied, model) if one.state == "missing"]
    assert (apart.name, apart.words) == ("output.weight", "not in the first")
