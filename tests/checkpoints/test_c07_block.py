"""Checkpoint 7: one whole block."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import block, c07_block, rope
from checkpoints.c07_block import CHECKPOINT
from llama_ckpt.points import BLOCK_POINTS
from llama_ckpt.weights.kv_cache import KVCache
from tests.checkpoints.catalogued_layers import check_catalogued_bugs_fail
from tests.checkpoints.drawn_inputs import (
    DEVICES,
    DTYPES,
    Values,
    arguments_seed,
    position_lists,
    small_config,
    small_llama,
    values,
)
from tests.checkpoints.dump_trials import (
    EVERY_DUMP,
    DumpRun,
    check_a_point_fails,
    check_every_point,
    judge_own,
)
from tests.checkpoints.held_against import check_capturable, check_passes, check_same_bits, judged

INNER = [f"blk.0.{point.name}" for point in BLOCK_POINTS if point.name != "out"]
OUT = ["blk.0.out"]
CONFIGS = {
    "grouped": small_config(),
    "multi-head": small_config(n_heads=4, n_kv_heads=4),
    "explicit head size": small_config(n_heads=2, n_kv_heads=1, head_dim=48),
    "other numbers": small_config(rms_norm_eps=1e-6, rope_theta=1e6, rope_scale=4.0),
}


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


def inputs(
    x: Values,
    positions: list[int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    config: str = "grouped",
) -> dict[str, Any]:
    """A residual stream and the weights of a block."""
    shape = CONFIGS[config]
    return {
        "x": x.tensor(len(positions), shape.width, dtype=dtype, device=device),
        "weights": small_llama(shape, seed=x.seed, dtype=dtype, device=device).blocks[0],
        "config": shape,
        "positions": torch.tensor(positions, device=device),
    }


@pytest.mark.parametrize("tapped", [False, True], ids=["plain", "tapped"])
@pytest.mark.parametrize("device", DEVICES)
@given(
    x=values(-3, 3),
    positions=st.integers(1, 9).flatmap(position_lists),
    config=st.sampled_from(sorted(CONFIGS)),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=25)
def test_oracle(
    device: str, tapped: bool, x: Values, positions: list[int], config: str, dtype: torch.dtype
) -> None:
    # Judged as the free-running model's points are: inside, each is computed from the one before.
    arguments = inputs(x, positions, dtype, device, config)
    taps = INNER if tapped else ()
    check_passes(judged(block, arguments, OUT, taps=taps, dtype=dtype, error_kind="total"))


def through_a_cache(cuts: list[int], x: Tensor, weights: Any, *, config: Any, positions: Tensor) -> Tensor:
    """The block's output for all tokens, given to it in pieces that end at `cuts`."""
    cache = KVCache.allocate(config, len(x), device=x.device, dtype=x.dtype)
    pieces = []
    for first, end in zip([0, *cuts], cuts, strict=False):
        cache.reserve(positions[first:end])
        at = {"positions": positions[first:end], "cache": cache.layer(0)}
        pieces.append(block(x[first:end], weights, config=config, **at))
    return torch.cat(pieces)


@pytest.mark.parametrize("device", DEVICES)
@given(seed=arguments_seed(), positions=position_lists(6), dtype=st.sampled_from(DTYPES))
@settings(max_examples=10)
def test_cached_is_uncached(device: str, seed: int, positions: list[int], dtype: torch.dtype) -> None:
    arguments = inputs(Values(seed), positions, dtype, device)
    for cuts in ([6], [1, 2, 3, 4, 5, 6], [4, 6]):

        def cached(x: Tensor, weights: Any, cuts: list[int] = cuts, **options: Any) -> Tensor:
            return through_a_cache(cuts, x, weights, **options)

        check_passes(judged(cached, arguments, OUT, function="block", dtype=dtype, error_kind="total"))


def test_a_later_token_never_changes_an_earlier_one() -> None:
    before = inputs(Values(0), [0, 1, 2, 3])
    after = {**before, "x": before["x"].clone()}
    after["x"][2:] = 7.0
    first, second = block(**before), block(**after)
    assert torch.equal(first[:2], second[:2]) and not torch.equal(first[2:], second[2:])


def test_a_block_of_zero_weights_hands_on_its_input() -> None:
    arguments = inputs(Values(0), [0, 1])
    there = {name: w for name, w in vars(arguments["weights"]).items() if w is not None}
    zeros = {name: torch.zeros_like(w) for name, w in there.items()}
    weights = dataclasses.replace(arguments["weights"], **zeros)
    assert torch.equal(block(**{**arguments, "weights": weights}), arguments["x"])


def test_shifting_all_positions_changes_nothing_but_rounding() -> None:
    near, far = inputs(Values(0), [0, 1, 2], torch.float64), inputs(Values(0), [500, 501, 502], torch.float64)
    torch.testing.assert_close(block(**near), block(**far), rtol=0, atol=1e-11)


def test_every_point_is_shown_in_order() -> None:
    seen: list[str] = []
    block(**inputs(Values(0), [0, 1]), tap=lambda point, tensor: seen.append(f"blk.0.{point}"))
    assert sorted(seen) == sorted(INNER)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("taps", [[], INNER], ids=["plain", "tapped"])
def test_two_runs_are_equal(taps: list[str], dtype: torch.dtype) -> None:
    check_same_bits(block, inputs(Values(0), [0, 1, 2], dtype), taps=taps)


@pytest.mark.parametrize("with_cache", [False, True])
def test_capturable(with_cache: bool) -> None:
    arguments = inputs(Values(0), [0, 1, 2])
    cache = KVCache.allocate(arguments["config"], 4)
    cache.reserve(arguments["positions"])
    check_capturable(block, {**arguments, "cache": cache.layer(0) if with_cache else None})


def gate_and_up_swapped(x: Tensor, weights: Any, **options: Any) -> Tensor:
    return block(x, dataclasses.replace(weights, w_gate=weights.w_up, w_up=weights.w_gate), **options)


def wo_transposed(x: Tensor, weights: Any, **options: Any) -> Tensor:
    return block(x, dataclasses.replace(weights, wo=weights.wo.T), **options)


def other_eps(x: Tensor, weights: Any, *, config: Any, **options: Any) -> Tensor:
    return block(x, weights, config=dataclasses.replace(config, rms_norm_eps=1e-6), **options)


def other_theta(x: Tensor, weights: Any, *, config: Any, **options: Any) -> Tensor:
    return block(x, weights, config=dataclasses.replace(config, rope_theta=500000.0), **options)


def positions_one_late_for_keys(x: Tensor, weights: Any, **options: Any) -> Tensor:
    def late(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor, **more: Any) -> Any:
        first = rope(q, k, positions, frequencies)[0]
        return first, rope(q, k, positions + 1, frequencies)[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c07_block, "rope", late)
        return block(x, weights, **options)


WRONG = [
    gate_and_up_swapped,
    wo_transposed,
    other_eps,
    other_theta,
    positions_one_late_for_keys,
]


def test_catalogued_bugs_fail() -> None:
    check_catalogued_bugs_fail(CHECKPOINT)


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_layer_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c07_block, "block", wrong)
    check_a_point_fails(judge_own(CHECKPOINT))
