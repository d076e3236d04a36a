"""Somebody's layer that rounds on purpose, judged as it declares: right ones pass, bugs show behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from llama_ckpt.arithmetic.profiles import PROFILES
from llama_ckpt.cli import app
from llama_ckpt.ladder.climb import validate
from llama_ckpt.ladder.report import LadderReport
from llama_ckpt.making.seeded_model import make_seeded
from tests.comparing.rounding_ports import in_int8

F = np.float32


def product(x: Any, w: Any) -> Any:
    """W8A8."""
    (rows, of_rows), (columns, of_columns) = in_int8(np.asarray(x, F)), in_int8(np.asarray(w, F))
    return (rows @ columns.T).astype(F) * of_rows * of_columns.T


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def swiglu(x: Any, w_gate: Any, w_up: Any, w_down: Any, tap: Any = None) -> Any:
    gate, up = product(x, w_gate), product(x, w_up)
    for name, array in (("ffn_gate", gate), ("ffn_up", up), ("ffn_swiglu", silu(gate) * up)):
        if tap:
            tap(name, array)
    return product(silu(gate) * up, w_down)


def untapped(x: Any, w_gate: Any, w_up: Any, w_down: Any) -> Any:
    return swiglu(x, w_gate, w_up, w_down)


def swapped(x: Any, w_gate: Any, w_up: Any, w_down: Any, tap: Any = None) -> Any:
    return swiglu(x, w_up, w_gate, w_down, tap)


def a_little_more(x: Any, w_gate: Any, w_up: Any, w_down: Any, tap: Any = None) -> Any:
    return swiglu(x, w_gate, w_up, w_down, tap) * F(1 + 1e-5)


def qkv(x: Any, wq: Any, wk: Any, wv: Any, *, n_heads: int, n_kv_heads: int) -> Any:
    heads = ((wq, n_heads), (wk, n_kv_heads), (wv, n_kv_heads))
    return tuple(product(x, w).reshape(len(x), n, -1) for w, n in heads)


def half_cache(q: Any, k: Any, v: Any, wo: Any, *, positions: Any) -> Any:
    """Torch's fused attention on keys and values that were kept in float16."""
    k, v = (x.half().float().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    made = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return made[0].transpose(0, 1).reshape(len(positions), -1) @ wo.T


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("declared") / "model.gguf"
    shape = {"width": 64, "n_heads": 4, "n_kv_heads": 2, "ffn": 96, "n_layers": 1, "vocab": 320}
    make_seeded(path, **shape, seed=1, type="F32")
    return path


def judged(model: Path, ids: str, function: Callable[..., Any], arithmetic: Any) -> LadderReport:
    options: dict[str, Any] = {"model": model, "device": "cpu", "oracle_only": True}
    return validate([ids], implementation=function, arithmetic=arithmetic, **options)


@pytest.mark.parametrize(
    ("ids", "function", "arithmetic"),
    [
        ("6", swiglu, "w8a8-per-token"),
        ("6", untapped, "w8a8-per-token"),
        ("2", qkv, PROFILES["w8a8-per-token"]),
        ("3", half_cache, {"keys": "float16", "values": "float16"}),
    ],
)
def test_a_right_layer_passes_as_it_declares(
    model: Path, ids: str, function: Callable[..., Any], arithmetic: Any
) -> None:
    report = judged(model, ids, function, arithmetic)
    assert report.exit_code == 0, report.checkpoints[0].reason
    assert report.arithmetic is not None
    assert report.arithmetic.left < 1e-6 < 1e-5 < report.arithmetic.costs
    assert report.notes[-1].startswith("declared: ") and "left unexplained" in report.notes[-1]
    assert report.to_json()["arithmetic"]["costs"] == report.arithmetic.costs


def test_what_declares_nothing_fails(model: Path) -> None:
    assert judged(model, "6", swiglu, None).exit_code == 1


@pytest.mark.parametrize(
    ("function", "point", "words"),
    [(swapped, "ffn_gate", "gate and up are swapped"), (a_little_more, "ffn_out", "gain of 1 + 1e-05")],
)
def test_a_bug_behind_the_rounding_is_named(
    model: Path, function: Callable[..., Any], point: str, words: str
) -> None:
    (result,) = judged(model, "6", function, "w8a8-per-token").checkpoints
    assert result.verdict == "fail"
    assert result.reason.startswith(f"blk.0.{point} of oracle/")
    assert words in result.diagnoses[0].sentence()


def test_a_wrong_name_is_told_of_before_anything_is_loaded(model: Path) -> None:
    found = CliRunner().invoke(app, ["validate", "1", "--model", str(model), "--arithmetic", "w8a8"])
    assert found.exit_code == 2
    assert "w8a8-per-token" in found.output
