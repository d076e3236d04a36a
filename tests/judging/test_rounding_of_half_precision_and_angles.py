"""What right programs lose that is no share of a result: float16 without digits, angles that heads share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llama_ckpt.judging.attention_spreads import swallowed
from llama_ckpt.judging.limits import limit_for, within
from llama_ckpt.judging.rounding import angle_error, case_spreads
from llama_ckpt.judging.rounding_steps import PRECISIONS, SWALLOWED, gated
from llama_ckpt.judging.verdict import PointVerdict, judge
from llama_ckpt.oracle import llama as oracle


def silu_at_once(gate: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate)


def sigmoid_rounded(gate: torch.Tensor) -> torch.Tensor:
    return gate * torch.sigmoid(gate)


@pytest.mark.parametrize("silu", [silu_at_once, sigmoid_rounded])
def test_a_gate_far_below_zero_has_no_digits_in_float16(
    silu: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """silu(-20) is 4e-8, float16's smallest step 6e-8: times an `up` of 8 the product is off by all it is."""
    gate = torch.linspace(-24, -8, 4096, dtype=torch.float16)
    up = torch.full_like(gate, 8.0)
    exact, deviation = gated(gate.double().numpy(), up.double().numpy(), None, None, PRECISIONS["float16"])
    off = np.abs((silu(gate) * up).double().numpy() - exact)
    assert (off <= 2.5 * deviation).all()
    assert (off > 0.5 * np.abs(exact)).any()  # so a share of the result alone would condemn it
    has_room = gate.double().numpy() > -np.log(65504)
    assert (deviation[has_room] < 2e-4).all() and (deviation < 2e-4 + np.abs(exact)).all()


def turned_in_float32(x: NDArray[np.float32], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """As transformers does: a position times a float32 frequency, its cosine and sine in float32."""
    d = x.shape[-1]
    frequencies = (1.0 / 10000.0 ** (np.arange(0, d, 2, dtype=np.float32) / np.float32(d))).astype(np.float32)
    angles = (positions[:, None].astype(np.float32) * frequencies)[:, None, :]
    cos, sin = np.cos(angles), np.sin(angles)
    y = np.empty_like(x)
    y[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    y[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
    return y


def judged(x: NDArray[np.float32], q: NDArray[np.float32], positions: NDArray[np.int64]) -> PointVerdict:
    frequencies = 10000.0 ** -(np.arange(0, q.shape[-1], 2) / q.shape[-1])
    arguments = {"q": q, "k": q, "positions": positions, "frequencies": frequencies}
    exact = oracle.rope(*(np.asarray(one, np.float64) for one in (q, q, positions, frequencies)))[0]
    spread = case_spreads("rope", arguments, {"q_rope": exact, "k_rope": exact}, "float32")["q_rope"]
    limit = within(limit_for("q_rope", "float32", "own"), spread, exact)
    return judge("q_rope", x, exact, limit=limit, dtype="float32")


@pytest.mark.parametrize(("n", "head_dim"), [(600, 4), (2000, 16)])
def test_heads_with_a_mean_lean_with_float32_angles(n: int, head_dim: int) -> None:
    """A token's heads are all turned too far by the same: where they have a mean, the error has one."""
    positions = np.arange(n)
    q = np.zeros((n, 4, head_dim), np.float32)
    q[..., 2:4] = 1.0  # the second pair: the first one's frequency is 1, which float32 has exactly
    right = turned_in_float32(q, positions)
    assert judged(right, q, positions).verdict == "pass"
    shifted = judged(right + np.float32(1e-4 * np.sqrt(np.mean(right * right))), q, positions)
    assert shifted.verdict == "fail"


def frequencies_by_powers_of_2(theta: float, head_dim: int) -> NDArray[np.float32]:
    """1 / 2^(log2(theta) i): the exponent is rounded, so the frequency the more the smaller it is."""
    i = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (np.float32(1) / np.exp2(np.float32(np.log2(theta)) * i)).astype(np.float32)


def frequencies_by_powers_of_e(theta: float, head_dim: int) -> NDArray[np.float32]:
    steps = np.arange(0, head_dim, 2, dtype=np.float32)
    return np.exp(steps * np.float32(-np.log(theta) / head_dim)).astype(np.float32)


@pytest.mark.parametrize("frequencies", [frequencies_by_powers_of_2, frequencies_by_powers_of_e])
@pytest.mark.parametrize(("theta", "head_dim"), [(1e4, 16), (1e5, 16), (5e5, 32), (1e6, 128)])
def test_exponents_and_cosines_in_float32_are_right(
    frequencies: Callable[[float, int], NDArray[np.float32]], theta: float, head_dim: int
) -> None:
    """A cosine may be the sine of pi/2 less the angle, a frequency a power whose exponent was rounded."""
    positions = np.array([0, 1, 19, 100, 600, 1000, 4095])
    exact = positions[:, None] * theta ** -(np.arange(0, head_dim, 2) / head_dim)
    angles = positions[:, None].astype(np.float32) * frequencies(theta, head_dim)
    cosine = np.sin((np.float32(np.pi / 2) - angles).astype(np.float32))
    off = np.maximum(np.abs(angles - exact), np.abs(cosine - np.cos(exact)))
    allowed = angle_error(positions, exact[1])
    assert (off <= allowed + 8 * 2.0**-24).all()  # what any rotation rounds besides
    assert (off > 0.4 * allowed).any()


def test_silu_of_a_gate_whose_exp_has_no_room_in_float16_may_be_nothing() -> None:
    """As MLX's on the CPU in SmolLM2: exp(12.2) is infinite, the sigmoid 0. In bfloat16 it is wrong."""
    gate, up = np.array([[-12.234375, -11.0, 0.4]]), np.array([[32.3125, 32.3125, 1.0]])
    for dtype, allowed in (("float16", [True, False, False]), ("bfloat16", [False] * 3)):
        exact, deviation = gated(gate, up, None, None, PRECISIONS[dtype])
        assert (np.abs(exact) <= 4 * deviation).tolist() == [allowed]


def test_a_cosine_taken_as_a_sine_makes_pairs_longer_or_shorter() -> None:
    """As tinygrad: the angle pi/2 further on is rounded by itself; in sum over all heads that is a gain."""
    rng = np.random.default_rng(3)
    q, positions = rng.standard_normal((600, 4, 16)).astype(np.float32), np.arange(600)
    frequencies = (10000.0 ** -(np.arange(0, 16, 2) / 16)).astype(np.float32)
    angle = positions[:, None].astype(np.float32) * frequencies
    further = (angle + np.float32(np.pi / 2)).astype(np.float32)
    cos, sin = (np.sin(a.astype(np.float64)).astype(np.float32)[:, None] for a in (further, angle))
    y = np.empty_like(q)
    y[..., 0::2] = q[..., 0::2] * cos - q[..., 1::2] * sin
    y[..., 1::2] = q[..., 0::2] * sin + q[..., 1::2] * cos
    assert judged(y, q, positions).verdict == "pass"
    assert judged(y * np.float32(1 + 2e-7), q, positions).verdict == "fail"


def test_a_softmax_added_up_one_after_the_other_loses_what_is_little() -> None:
    """Hundreds of terms below a rounding of the first are lost: all probabilities are too large by them."""
    rng = np.random.default_rng(5)
    scores = np.where(np.arange(600) == 0, 0.0, rng.uniform(-20.5, -17, (64, 600)))
    e = np.exp(scores)
    one_by_one = np.cumsum(e.astype(np.float32), axis=1, dtype=np.float32)[:, -1:]
    probs = e / e.sum(axis=1, keepdims=True)
    off = float(((e / one_by_one - probs) * probs).sum() / (probs * probs).sum())
    lost, energy = swallowed(probs, 2.0**-24)
    assert off > 1e-6 and off == pytest.approx(lost / SWALLOWED / energy, rel=1e-3)
    assert swallowed(np.full((2, 600), 1 / 600), 2.0**-24)[0] == 0


@pytest.mark.parametrize("lost", [True, False])
def test_such_probabilities_are_right_and_others_as_much_off_are_not(
    lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is allowed is what is lost: without it the same tensor would be condemned by its gain."""
    if not lost:
        for module in ("attention_spreads", "rounding_steps"):
            monkeypatch.setattr(f"llama_ckpt.judging.{module}.SWALLOWED", 0.0)
    rng = np.random.default_rng(7)
    q, k, v = (np.zeros((600, 2, 16)) for _ in range(3))
    q[..., 0], k[1:, :, 0], v[:] = 10.0, -rng.uniform(6.8, 8.2, (599, 2)), rng.standard_normal(v.shape)
    arguments = {"q": q, "k": k, "v": v, "wo": np.eye(32), "positions": np.arange(600)}
    exact = dict[str, NDArray[np.float64]]()
    exact["attn_out"] = oracle.attention(**arguments, tap=exact.__setitem__)
    spread = case_spreads("attention", arguments, exact, "float32")["attn_probs"]
    limit = within(limit_for("attn_probs", "float32", "own"), spread, exact["attn_probs"])
    e = np.exp(np.where(exact["attn_probs"] > 0, exact["attn_scores"] * 0.25, -np.inf)).astype(np.float32)
    probs = e / np.cumsum(e, axis=-1, dtype=np.float32)[..., -1:]
    verdict = judge("attn_probs", probs, exact["attn_probs"], limit=limit, dtype="float32")
    assert verdict.verdict == ("pass" if lost else "fail"), verdict.reason
    assert lost or "gain" in verdict.reason
