"""Checkpoint 6: the gated feed-forward network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import c06_swiglu, swiglu
from checkpoints.c06_swiglu import CHECKPOINT
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

INNER = ["blk.0.ffn_gate", "blk.0.ffn_up", "blk.0.ffn_swiglu"]
OUT = ["blk.0.ffn_out"]


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


def inputs(
    x: Values, n: int, width: int, ffn: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict[str, Any]:
    """Rows, and three matrices of the usual scale."""
    plain = Values(x.seed)
    shapes = {"w_gate": (ffn, width), "w_up": (ffn, width), "w_down": (width, ffn)}
    weights = {
        name: plain.tensor(*shape, dtype=dtype, device=device, salt=salt) / shape[1] ** 0.5
        for salt, (name, shape) in enumerate(shapes.items(), start=1)
    }
    return {"x": x.tensor(n, width, dtype=dtype, device=device), **weights}


@pytest.mark.parametrize("tapped", [False, True], ids=["plain", "tapped"])
@pytest.mark.parametrize("device", DEVICES)
@given(
    x=values(-3, 2),
    n=st.integers(1, 9),
    width=st.sampled_from([48, 64, 128]),
    ffn=st.sampled_from([96, 160, 192]),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=25)
def test_oracle(
    device: str, tapped: bool, x: Values, n: int, width: int, ffn: int, dtype: torch.dtype
) -> None:
    arguments = inputs(x, n, width, ffn, dtype, device)
    check_passes(judged(swiglu, arguments, OUT, taps=INNER if tapped else (), dtype=dtype))


@given(seed=arguments_seed())
@settings(max_examples=10)
def test_a_gate_of_zeros_lets_nothing_through(seed: int) -> None:
    arguments = inputs(Values(seed), 3, 48, 96)
    closed = swiglu(**{**arguments, "w_gate": torch.zeros_like(arguments["w_gate"])})
    assert torch.equal(closed, torch.zeros(3, 48))


@given(seed=arguments_seed())
@settings(max_examples=10)
def test_linear_in_the_up_projection(seed: int) -> None:
    arguments = inputs(Values(seed), 3, 48, 96, torch.float64)
    other = {**arguments, "w_up": Values(seed).tensor(96, 48, dtype=torch.float64, salt=9)}
    both = {**arguments, "w_up": arguments["w_up"] + other["w_up"]}
    torch.testing.assert_close(swiglu(**both), swiglu(**arguments) + swiglu(**other), rtol=1e-11, atol=1e-12)


def test_gates_far_from_zero_are_open_or_shut() -> None:
    gate = torch.tensor([[1.0], [1.0]])
    out = swiglu(torch.tensor([[200.0], [-200.0]]), gate, torch.ones(2, 1), torch.ones(1, 2))
    assert out.tolist() == [[2 * 200.0 * 200.0], [0.0]]  # and no overflow of exp(200)


def test_a_row_does_not_depend_on_the_others() -> None:
    arguments = inputs(Values(1), 4, 64, 96)
    changed = {**arguments, "x": arguments["x"].clone()}
    changed["x"][2] = 100.0
    assert torch.equal(swiglu(**arguments)[[0, 1, 3]], swiglu(**changed)[[0, 1, 3]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_are_equal(dtype: torch.dtype) -> None:
    check_same_bits(swiglu, inputs(Values(0), 4, 64, 96, dtype), taps=INNER)


def test_capturable() -> None:
    check_capturable(swiglu, inputs(Values(0), 4, 64, 96, torch.float16))


def bent(
    product: Callable[[Tensor, Tensor], Tensor] = lambda gate, up: F.silu(gate) * up,
    down: Callable[[Tensor], Tensor] = lambda w: w,
) -> Callable[..., Tensor]:
    """The network with one step that can be bent; unbent it is right."""

    def layer(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor, tap: Any = None) -> Tensor:
        see = tap or (lambda point, tensor: None)
        w_gate, w_up, w_down = w_gate.to(x.dtype), w_up.to(x.dtype), w_down.to(x.dtype)
        gate, up = F.linear(x, w_gate), F.linear(x, w_up)
        inner = product(gate, up)
        for point, tensor in (("ffn_gate", gate), ("ffn_up", up), ("ffn_swiglu", inner)):
            see(point, tensor)
        return F.linear(inner, down(w_down))

    return layer


WRONG = {
    "up forgotten": bent(lambda gate, up: F.silu(gate)),
    "half of the features": bent(lambda gate, up: torch.cat((F.silu(gate) * up, 0 * up), -1)[..., ::2]),
    "down shifted": bent(down=lambda w: w.roll(1, 1)),
    "down for other tokens' features": bent(down=lambda w: w.flip(0)),
    "product in bfloat16": bent(lambda gate, up: (F.silu(gate) * up).bfloat16().to(gate.dtype)),
}


def test_unbent_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c06_swiglu, "swiglu", bent())
    check_passes(judge_own(CHECKPOINT))


def test_catalogued_bugs_fail() -> None:
    check_catalogued_bugs_fail(CHECKPOINT)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_wrong_layer_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c06_swiglu, "swiglu", wrong)
    verdicts = judge_own(CHECKPOINT)
    check_a_point_fails(verdicts)
    check_a_point_fails([one for one in verdicts if "ffn_out" in one.name])


def test_an_overflowing_product_fails() -> None:
    arguments = inputs(Values(0, 9), 3, 64, 96, torch.float16)
    verdicts = judged(swiglu, arguments, OUT, taps=INNER, dtype=torch.float16)
    check_a_point_fails(verdicts)
    assert "not finite" in verdicts[-1].reason
