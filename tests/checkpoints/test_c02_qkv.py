"""Checkpoint 2: the projections to queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import c02_qkv, qkv
from checkpoints.c02_qkv import CHECKPOINT
from llama_ckpt.weights.quants import PackedWeight
from tests.checkpoints.catalogued_layers import check_catalogued_bugs_fail
from tests.checkpoints.drawn_inputs import DEVICES, DTYPES, Heads, Values, arguments_seed, heads, values
from tests.checkpoints.dump_trials import (
    EVERY_DUMP,
    DumpRun,
    check_a_point_fails,
    check_every_point,
    judge_own,
)
from tests.checkpoints.held_against import check_capturable, check_passes, check_same_bits, judged

POINTS = ["q", "k", "v"]


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


def inputs(
    drawn: Heads, x: Values, n: int, width: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict[str, Any]:
    """Rows, and three matrices of the usual scale."""
    plain = Values(x.seed)
    rows = {"wq": drawn.n_heads, "wk": drawn.n_kv_heads, "wv": drawn.n_kv_heads}
    weights = {
        name: plain.tensor(count * drawn.head_dim, width, dtype=dtype, device=device, salt=salt) / width**0.5
        for salt, (name, count) in enumerate(rows.items(), start=1)
    }
    heads_of = {"n_heads": drawn.n_heads, "n_kv_heads": drawn.n_kv_heads}
    return {"x": x.tensor(n, width, dtype=dtype, device=device), **weights, **heads_of}


@pytest.mark.parametrize("device", DEVICES)
@given(
    drawn=heads(),
    x=values(),
    n=st.integers(1, 9),
    width=st.sampled_from([48, 64, 256]),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=25)
def test_oracle(device: str, drawn: Heads, x: Values, n: int, width: int, dtype: torch.dtype) -> None:
    check_passes(judged(qkv, inputs(drawn, x, n, width, dtype, device), POINTS, dtype=dtype))


@pytest.mark.parametrize("device", DEVICES)
@given(seed=arguments_seed(), n=st.integers(1, 5))
@settings(max_examples=10)
def test_packed_weights_are_used_at_their_exact_values(device: str, seed: int, n: int) -> None:
    arguments = inputs(Heads(4, 2, 16), Values(seed), n, 64, device=device)
    generator = torch.Generator().manual_seed(seed)
    for name, rows in (("wq", 64), ("wk", 32), ("wv", 32)):
        raw = torch.randint(0, 256, (rows, 2, 34), dtype=torch.uint8, generator=generator)
        raw[:, :, 1] = 0x14 + raw[:, :, 1] % 4  # a scale near 2^-10
        arguments[name] = PackedWeight(raw.flatten(1).to(device), GGMLQuantizationType.Q8_0, (rows, 64))
    check_passes(judged(qkv, arguments, POINTS))


@given(seed=arguments_seed())
@settings(max_examples=10)
def test_linear_in_x(seed: int) -> None:
    arguments = inputs(Heads(4, 2, 8), Values(seed), 3, 48, torch.float64)
    other = Values(seed).tensor(3, 48, dtype=torch.float64, salt=9)
    together = qkv(**{**arguments, "x": 2 * arguments["x"] + other})
    apart = zip(qkv(**arguments), qkv(**{**arguments, "x": other}), strict=True)
    for whole, (first, second) in zip(together, apart, strict=True):
        torch.testing.assert_close(whole, 2 * first + second, rtol=1e-12, atol=1e-13)


def test_head_h_is_a_run_of_rows() -> None:
    arguments = inputs(Heads(4, 2, 8), Values(0), 3, 48)
    q, k, v = qkv(**arguments)
    assert q.shape == (3, 4, 8) and k.shape == v.shape == (3, 2, 8)
    changed = arguments["wq"].clone()
    changed[8:16] = 0.0
    found = qkv(**{**arguments, "wq": changed})[0]
    assert not found[:, 1].any() and torch.equal(found[:, [0, 2, 3]], q[:, [0, 2, 3]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_are_equal(dtype: torch.dtype) -> None:
    check_same_bits(qkv, inputs(Heads(4, 2, 16), Values(0), 5, 64, dtype))


def test_capturable() -> None:
    check_capturable(qkv, inputs(Heads(4, 2, 16), Values(0), 5, 64, torch.float16))


def transposed(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, **heads_of: int) -> Any:
    return qkv(x, wq.T, wk.T, wv.T, **heads_of)


def heads_reversed(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, **heads_of: int) -> Any:
    q, k, v = qkv(x, wq, wk, wv, **heads_of)
    return q.flip(1), k, v


def next_token_s_row(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, **heads_of: int) -> Any:
    return qkv(x.roll(-1, 0), wq, wk, wv, **heads_of)


def v_scaled(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, **heads_of: int) -> Any:
    q, k, v = qkv(x, wq, wk, wv, **heads_of)
    return q, k, v * 1.002


def weights_rounded_to_8_bits(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, **heads_of: int) -> Any:
    step = wq.float().abs().amax(-1, keepdim=True) / 127
    return qkv(x, (wq.float() / step).round() * step, wk, wv, **heads_of)


def summed_in_half_precision(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, **heads_of: int) -> Any:
    return tuple(y.float() for y in qkv(x.bfloat16(), wq, wk, wv, **heads_of))


WRONG = [
    transposed,
    heads_reversed,
    next_token_s_row,
    v_scaled,
    weights_rounded_to_8_bits,
    summed_in_half_precision,
]


def test_catalogued_bugs_fail() -> None:
    check_catalogued_bugs_fail(CHECKPOINT)


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_layer_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c02_qkv, "qkv", wrong)
    check_a_point_fails(judge_own(CHECKPOINT))


def test_keys_split_by_the_query_heads_fail() -> None:
    def wrong(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, *, n_heads: int, n_kv_heads: int) -> Any:
        return qkv(x, wq, wk, wv, n_heads=n_heads, n_kv_heads=n_heads)

    arguments = inputs(Heads(4, 2, 16), Values(0), 5, 64)
    failed = judged(wrong, arguments, POINTS, function="qkv")
    check_a_point_fails(failed)
    assert "wrong shape" in failed[1].reason
