"""Checkpoint 1: RMSNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import c01_rms_norm, rms_norm
from checkpoints.c01_rms_norm import CHECKPOINT
from tests.checkpoints.catalogued_layers import check_catalogued_bugs_fail
from tests.checkpoints.drawn_inputs import DEVICES, DTYPES, Values, arguments_seed, values
from tests.checkpoints.dump_trials import (
    EVERY_DUMP,
    DumpRun,
    check_a_point_fails,
    check_every_point,
    judge_own,
)
from tests.checkpoints.held_against import check_capturable, check_passes, check_same_bits, judged

EPS = 1e-5


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


def inputs(
    x: Values, n: int, width: int, dtype: torch.dtype, device: str = "cpu", eps: float = EPS
) -> dict[str, Any]:
    """Rows of the drawn values, and gains that every precision holds exactly."""
    gains = (1 + Values(x.seed).tensor(width, dtype=torch.float32, salt=1) / 8).bfloat16().float()
    return {"x": x.tensor(n, width, dtype=dtype, device=device), "weight": gains.to(device), "eps": eps}


@pytest.mark.parametrize("device", DEVICES)
@given(
    x=values(-8, 10),
    n=st.integers(1, 9),
    width=st.sampled_from([32, 33, 64, 200, 1024]),
    eps=st.sampled_from([1e-6, 1e-5]),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=25)
def test_oracle(device: str, x: Values, n: int, width: int, eps: float, dtype: torch.dtype) -> None:
    check_passes(judged(rms_norm, inputs(x, n, width, dtype, device, eps), ["output_norm"], dtype=dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("exponent", [-126, -60, 40])
def test_oracle_at_the_ends_of_float32(exponent: int, device: str) -> None:
    # Squares underflow, so that eps alone is left under the root; or come near the largest float32.
    arguments = inputs(Values(3, exponent), 4, 64, torch.float32, device)
    check_passes(judged(rms_norm, arguments, ["output_norm"]))


def test_squares_beyond_float16_do_not_overflow() -> None:
    arguments = inputs(Values(5, 12), 4, 64, torch.float16)
    assert float(arguments["x"].float().square().sum(-1).min()) > 65504
    check_passes(judged(rms_norm, arguments, ["output_norm"], dtype=torch.float16))


@given(seed=arguments_seed(), exponent=st.integers(-20, 20))
@settings(max_examples=25)
def test_scale_invariance_without_eps(seed: int, exponent: int) -> None:
    x = Values(seed).tensor(3, 48, dtype=torch.float64)
    weight = Values(seed).tensor(48, dtype=torch.float64, salt=1)
    scaled = rms_norm(x * 2.0**exponent, weight, eps=0.0)
    torch.testing.assert_close(scaled, rms_norm(x, weight, eps=0.0), rtol=1e-14, atol=0)


@given(seed=arguments_seed())
@settings(max_examples=10)
def test_linear_in_the_weight(seed: int) -> None:
    x = Values(seed).tensor(3, 48, dtype=torch.float64)
    a, b = (Values(seed).tensor(48, dtype=torch.float64, salt=salt) for salt in (1, 2))
    summed = rms_norm(x, a, eps=EPS) + rms_norm(x, b, eps=EPS)
    torch.testing.assert_close(rms_norm(x, a + b, eps=EPS), summed, rtol=1e-13, atol=1e-14)


@given(seed=arguments_seed())
@settings(max_examples=10)
def test_rows_have_a_root_mean_square_of_one(seed: int) -> None:
    x = Values(seed).tensor(5, 64, dtype=torch.float64)
    normed = rms_norm(x, torch.ones(64), eps=0.0)
    torch.testing.assert_close(
        normed.square().mean(-1), torch.ones(5, dtype=torch.float64), rtol=1e-14, atol=0
    )


def test_a_row_does_not_depend_on_the_others() -> None:
    arguments = inputs(Values(1), 4, 64, torch.float32)
    changed = {**arguments, "x": arguments["x"].clone()}
    changed["x"][2] = 1000.0
    assert torch.equal(rms_norm(**arguments)[[0, 1, 3]], rms_norm(**changed)[[0, 1, 3]])


def test_zeros_stay_zeros() -> None:
    assert torch.equal(rms_norm(torch.zeros(2, 8), torch.ones(8), eps=EPS), torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_are_equal(dtype: torch.dtype) -> None:
    check_same_bits(rms_norm, inputs(Values(0), 4, 64, dtype))


def test_capturable() -> None:
    check_capturable(rms_norm, inputs(Values(0), 4, 64, torch.float16))


def normed(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def eps_twice(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return rms_norm(x, weight, eps=2 * eps)


def rounded_to_bfloat16(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return rms_norm(x.bfloat16(), weight, eps=eps).float()


def gain_of_one_part_in_a_thousand(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return rms_norm(x, weight, eps=eps) * 1.001


def one_element_off(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    y = rms_norm(x, weight, eps=eps).clone()
    y[-1, 0] += 1e-3
    return y


WRONG = [
    eps_twice,
    rounded_to_bfloat16,
    gain_of_one_part_in_a_thousand,
    one_element_off,
]


def test_catalogued_bugs_fail() -> None:
    check_catalogued_bugs_fail(CHECKPOINT)


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_layer_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c01_rms_norm, "rms_norm", wrong)
    check_a_point_fails(judge_own(CHECKPOINT))


def test_squares_summed_in_float16_fail() -> None:
    def wrong(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        squares = (x * x).sum(-1, keepdim=True)  # infinite in float16
        return x / (squares / x.shape[-1] + eps).sqrt() * weight.to(x.dtype)

    arguments = inputs(Values(5, 10), 4, 64, torch.float16)
    verdicts = judged(wrong, arguments, ["output_norm"], function="rms_norm", dtype=torch.float16)
    check_a_point_fails(verdicts)
