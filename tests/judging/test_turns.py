"""RoPE's angles by themselves: what is rounded too early shows in slopes long before it shows in tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llama_ckpt.judging.by_rows import Rows, judge_by_rows
from llama_ckpt.judging.limits import Limit, limit_for, within
from llama_ckpt.judging.rounding import case_spreads
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.turns import sideways
from llama_ckpt.judging.verdict import judge
from llama_ckpt.mutants.right_programs.framework_programs import framework_programs
from llama_ckpt.oracle import llama as oracle

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Turned:
    """Queries of a precision, the oracle's rotation of them, and what a right program may be off by."""

    def __init__(self, x: NDArray[Any], dtype: str, theta: float = 1e4, first: int = 0) -> None:
        kind = HALVES.get(dtype, torch.float32)
        self.dtype, self.x = dtype, torch.from_numpy(np.float32(x)).to(kind)
        self.positions = torch.arange(first, first + len(x))
        self.frequencies = torch.from_numpy(theta ** -(np.arange(0, x.shape[-1], 2) / x.shape[-1]))
        q = self.x.double().numpy()
        given = {
            "q": q, "k": q, "positions": self.positions.numpy(), "frequencies": self.frequencies.numpy()
        }  # fmt: skip
        self.exact = oracle.rope(**given)[0]
        answers = {"q_rope": self.exact, "k_rope": self.exact}
        self.spread: Spread = case_spreads("rope", given, answers, dtype)["q_rope"]
        self.limit: Limit = within(limit_for("q_rope", dtype, "own"), self.spread, self.exact)

    def by(self, framework: str, frequencies: Any = None) -> NDArray[np.float32]:
        kind = HALVES.get(self.dtype, torch.float32)
        program = framework_programs(kind)[framework]
        turns = self.frequencies if frequencies is None else frequencies
        return np.asarray(program.rope(self.x, self.x, self.positions, turns)[0].float())

    def says(self, x: NDArray[Any]) -> str:
        verdict = judge("q_rope", x, self.exact, limit=self.limit, dtype=self.dtype)
        return "" if verdict.verdict == "pass" else verdict.reason


def heads(n: int, count: int, head_dim: int) -> NDArray[Any]:
    return np.random.default_rng(n).standard_normal((n, count, head_dim))


FRAMEWORKS = ("transformers, eager", "Meta", "llama.cpp", "exact angles")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize(("theta", "head_dim"), [(1e4, 16), (5e5, 32), (5e5, 128)])
def test_frequencies_that_are_rounded_with_the_model_are_seen(
    dtype: str, n: int, theta: float, head_dim: int
) -> None:
    """`model.half()` rounds them where they are a buffer; the error is less than the products' own."""
    turned = Turned(heads(n, 4, head_dim), dtype, theta)
    for framework in FRAMEWORKS:
        assert not turned.says(turned.by(framework))
    rounded = turned.frequencies.to(HALVES[dtype]).double()
    for framework in FRAMEWORKS[:2]:
        assert "turned" in turned.says(turned.by(framework, rounded))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_same_token_again_and_again_is_rounded_the_same_way(dtype: str) -> None:
    """The pairs that hardly turn keep their rounding for hundreds of tokens: no chance averages it out."""
    for seed, theta, head_dim in ((6, 5e5, 64), (19, 1e4, 128)):  # 19: one step is nine roundings, to 0.1
        one = np.random.default_rng(seed).standard_normal((1, 4, head_dim))
        turned = Turned(np.repeat(one, 300, axis=0), dtype, theta)
        assert not turned.says(turned.by("transformers, eager"))


@pytest.mark.parametrize("first", [0, 4000])
def test_float32_angles_pass_and_a_factor_of_three_roundings_does_not(first: int) -> None:
    turned = Turned(heads(300, 4, 16), "float32", first=first)
    for framework in FRAMEWORKS:
        assert not turned.says(turned.by(framework))
    assert "turned" in turned.says(turned.by("exact angles", turned.frequencies * (1 + 3 * 2.0**-23)))


def test_a_wrong_angle_of_one_token_is_seen() -> None:
    turned = Turned(heads(50, 8, 64), "bfloat16")
    x = turned.by("transformers, eager").copy()
    pair, angle = slice(10, 12), 0.02
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    x[30, :, pair] = x[30, :, pair] @ turn
    assert "(radians, pair 5)" in turned.says(x)
    assert sideways(x, turned.exact, 32)[30, 5] == pytest.approx(angle, rel=0.2)


def test_first_positions_and_vectors_of_nothing_are_not_turned() -> None:
    assert not Turned(heads(1, 2, 8), "float32").says(np.float32(heads(1, 2, 8)))
    turned = Turned(np.zeros((5, 2, 8)), "float32")
    assert not turned.says(np.zeros((5, 2, 8), np.float32))


def test_rows_by_rows_it_is_the_same() -> None:
    turned = Turned(heads(120, 4, 16), "float16")
    o, spread = turned.exact.reshape(120, -1), turned.spread
    for x in (turned.by("Meta"), turned.by("Meta", turned.frequencies.half().double())):
        flat = x.reshape(120, -1)

        def made(flat: NDArray[Any] = flat) -> Any:
            for part in (slice(0, 50), slice(50, 120)):
                some = spread.rows(part)
                deviation = some.deviation.reshape(len(o[part]), -1)
                most = None if some.most is None else some.most.reshape(deviation.shape)
                yield Rows(flat[part], o[part], spread=Spread(deviation, most, some.lean, angles=some.angles))

        verdict, held = judge_by_rows("q_rope", o.shape, made, limit_for("q_rope", "float16", "own"))
        wanted = judge("q_rope", x, turned.exact, limit=turned.limit, dtype="float16")
        assert verdict.verdict == wanted.verdict
        assert ("turned" in verdict.reason) == ("turned" in wanted.reason)
        assert held.turn is not None and turned.limit.turn is not None
        # How alike heads are is told by the rows at hand: by few of them a little otherwise.
        assert np.allclose(held.turn.deviation, turned.limit.turn.deviation, rtol=0.05)
