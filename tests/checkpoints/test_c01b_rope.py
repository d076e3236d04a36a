"""Checkpoint 1B: RoPE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import c01b_rope, rope
from checkpoints.c01b_rope import CHECKPOINT, rope_frequencies
from llama_ckpt.oracle import llama as oracle
from tests.checkpoints.catalogued_layers import check_catalogued_bugs_fail
from tests.checkpoints.drawn_inputs import (
    DEVICES,
    DTYPES,
    Heads,
    Values,
    arguments_seed,
    heads,
    position_lists,
    small_config,
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

POINTS = ["q_rope", "k_rope"]


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


def inputs(
    drawn: Heads,
    x: Values,
    positions: list[int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    theta: float = 10000.0,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Queries, keys, positions and frequencies, all on the device."""
    config = small_config(head_dim=drawn.head_dim, rope_theta=theta, rope_scale=scale)
    n = len(positions)
    return {
        "q": x.tensor(n, drawn.n_heads, drawn.head_dim, dtype=dtype, device=device),
        "k": x.tensor(n, drawn.n_kv_heads, drawn.head_dim, dtype=dtype, device=device, salt=1),
        "positions": torch.tensor(positions, device=device),
        "frequencies": rope_frequencies(config, device),
    }


@pytest.mark.parametrize("device", DEVICES)
@given(
    drawn=heads(),
    x=values(-6, 10),
    positions=st.integers(1, 9).flatmap(position_lists),
    theta=st.sampled_from([10000.0, 500000.0, 1e6]),
    scale=st.sampled_from([1.0, 4.0]),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=25)
def test_oracle(
    device: str,
    drawn: Heads,
    x: Values,
    positions: list[int],
    theta: float,
    scale: float,
    dtype: torch.dtype,
) -> None:
    arguments = inputs(drawn, x, positions, dtype, device, theta, scale)
    check_passes(judged(rope, arguments, POINTS, dtype=dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("theta", [10000.0, 1e6])
@pytest.mark.parametrize("head_dim", [2, 16, 128])
def test_frequencies(head_dim: int, theta: float, scale: float, device: str) -> None:
    config = small_config(head_dim=head_dim, rope_theta=theta, rope_scale=scale)
    found = rope_frequencies(config, device)
    assert found.dtype == torch.float64
    wanted = torch.from_numpy(oracle.rope_frequencies(config)).to(device)
    torch.testing.assert_close(found, wanted, rtol=1e-15, atol=0)


@given(drawn=heads(), seed=arguments_seed(), position=st.integers(0, 1 << 20))
@settings(max_examples=25)
def test_keeps_the_norm_of_every_pair(drawn: Heads, seed: int, position: int) -> None:
    arguments = inputs(drawn, Values(seed), [position], torch.float64)
    for before, after in zip((arguments["q"], arguments["k"]), rope(**arguments), strict=True):
        lengths = [x.unflatten(-1, (-1, 2)).norm(dim=-1) for x in (before, after)]
        torch.testing.assert_close(lengths[1], lengths[0], rtol=1e-14, atol=0)


@given(seed=arguments_seed(), shift=st.integers(0, 1 << 16), gap=st.integers(0, 500))
@settings(max_examples=25)
def test_products_depend_on_the_relative_position_only(seed: int, shift: int, gap: int) -> None:
    arguments = inputs(Heads(1, 1, 16), Values(seed), [0, gap], torch.float64)
    q, k = rope(**arguments)
    moved = {**arguments, "positions": arguments["positions"] + shift}
    q_moved, k_moved = rope(**moved)
    # An angle of 65,536 radians is known to 7e-12 in float64.
    torch.testing.assert_close((q_moved[1] * k_moved[0]).sum(), (q[1] * k[0]).sum(), rtol=0, atol=1e-9)


def test_position_zero_changes_nothing() -> None:
    arguments = inputs(Heads(4, 2, 16), Values(0), [0, 0, 0])
    q, k = rope(**arguments)
    assert torch.equal(q, arguments["q"]) and torch.equal(k, arguments["k"])


def test_turns_add_up() -> None:
    arguments = inputs(Heads(2, 2, 16), Values(0), [3, 700], torch.float64)
    q, k = rope(**arguments)
    twice = rope(**{**arguments, "q": q, "k": k, "positions": torch.tensor([40, 5])})
    once = rope(**{**arguments, "positions": torch.tensor([43, 705])})
    for a, b in zip(twice, once, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_first_pair_turns_by_one_radian_a_position() -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    q, _ = rope(x, x, torch.tensor([1]), rope_frequencies(small_config(head_dim=4)))
    cos, sin = torch.tensor(1.0, dtype=torch.float64).cos(), torch.tensor(1.0, dtype=torch.float64).sin()
    torch.testing.assert_close(q[0, 0], torch.tensor([cos, sin, 0.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_are_equal(dtype: torch.dtype) -> None:
    check_same_bits(rope, inputs(Heads(4, 2, 16), Values(0), [4000, 4001], dtype))


def test_capturable() -> None:
    check_capturable(rope, inputs(Heads(4, 2, 16), Values(0), [4000, 4001], torch.float16))


def positions_backwards(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> Any:
    return rope(q, k, positions.flip(0), frequencies)


def k_only(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> Any:
    return q, rope(q, k, positions, frequencies)[1]


def not_at_all(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> Any:
    return q, k


def linear_scaling_made_up(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> Any:
    return rope(q, k, positions, frequencies / 2)


WRONG = [
    positions_backwards,
    k_only,
    not_at_all,
    linear_scaling_made_up,
]


def test_catalogued_bugs_fail() -> None:
    check_catalogued_bugs_fail(CHECKPOINT)


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_layer_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c01b_rope, "rope", wrong)
    check_a_point_fails(judge_own(CHECKPOINT))


def test_angles_in_float16_fail() -> None:
    def wrong(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> Any:
        return rope(q, k, torch.ones_like(positions), (positions.half()[:1] * frequencies.half()).double())

    arguments = inputs(Heads(4, 2, 16), Values(0), [37])
    check_a_point_fails(judged(wrong, arguments, POINTS, function="rope"))


@pytest.mark.parametrize("first", [4000, 100_000])
def test_angles_in_float32_fail_far_out(first: int) -> None:
    def wrong(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> Any:
        angles = positions.float()[:, None] * frequencies.float()
        turned = [rope(q[i : i + 1], k[i : i + 1], torch.ones(1), angles[i].double()) for i in range(len(q))]
        return torch.cat([a for a, _ in turned]), torch.cat([b for _, b in turned])

    arguments = inputs(Heads(4, 2, 64), Values(0), [first, first + 1, first + 2])
    check_a_point_fails(judged(wrong, arguments, POINTS, function="rope"))


def test_far_positions_show_that_llama_cpp_is_off() -> None:
    verdicts = judge_own(CHECKPOINT, DumpRun("f32/far-positions"))
    assert all(one.verdict == "pass" for one in verdicts)
    assert {one.blame for one in verdicts} == {"reference"}
    assert all(one.closer == "yours" and one.err_reference > 100 * one.err for one in verdicts)
