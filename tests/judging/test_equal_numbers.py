"""Equal numbers of queries and keys, which half precision rounds alike each time."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llama_ckpt.judging.equal_numbers import scores_together
from llama_ckpt.judging.limits import limit_for, within
from llama_ckpt.judging.rounding_steps import PRECISIONS
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.step_spreads import gated_spread, product_spread
from llama_ckpt.judging.to_precision import to_float16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_sums_are_those_of_every_pair(dtype: str) -> None:
    """In blocks and by sorting as one by one, and in any order of the rows."""
    rng = np.random.default_rng(0)
    n, heads, kv_heads, head_dim = 150, 4, 2, 8
    tokens = np.round(rng.normal(size=(3, heads, head_dim)) * 8) / 8
    q, k = tokens[rng.integers(0, 3, n)], tokens[rng.integers(0, 3, n), :kv_heads]
    p, positions = PRECISIONS[dtype], np.arange(n)
    scores = np.einsum("thd,shd->hts", q, np.repeat(k, 2, 1)) * np.tri(n)
    found = np.zeros(2)
    for head in range(heads):
        seen = k[:, head // 2]
        found += _one_by_one(q[:, head], np.stack([scores[head] @ seen, np.tri(n) @ seen]), p.half)
    for key in range(kv_heads):
        group = (2 * key, 2 * key + 1)
        towards = sum(np.stack([scores[h].T @ q[:, h], np.tri(n).T @ q[:, h]]) for h in group)
        found += _one_by_one(k[:, key], np.asarray(towards), p.half)
    mixed = rng.permutation(n)
    for order in (positions, mixed):
        np.testing.assert_allclose(scores_together(q[order], k[order], positions[order], p), found, rtol=1e-9)


def _one_by_one(x: NDArray[np.float64], towards: NDArray[np.float64], half: float) -> NDArray[np.float64]:
    made = np.zeros(2)
    for feature, column in enumerate(x.T):
        errors = half * column * towards[:, :, feature]
        for value in np.unique(column):
            some = errors[:, column == value]
            made += some.sum(axis=1) ** 2 - (some**2).sum(axis=1)
    return made


def test_float32_and_other_numbers_lean_by_nothing() -> None:
    """Chance gives half precision few equal numbers, and what they come to is little; float32 has none."""
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 40, 4, 16))
    positions = np.arange(40)
    assert scores_together(q, k, positions, PRECISIONS["float32"]) == (0.0, 0.0)
    _, plain = scores_together(q, k, positions, PRECISIONS["bfloat16"])
    alone = 2 * (PRECISIONS["bfloat16"].half * np.abs(q).mean()) ** 2 * 40 * 40 / 2 * 4 * 16
    assert plain < alone


def test_a_product_of_a_norm_in_float32_rounds_it_for_all_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As autocast does: an error of the norm's is one for all outputs, and three equal tokens have it."""
    p = PRECISIONS["float16"]

    def used(seed: int) -> float:
        rng = np.random.default_rng(seed)
        x, w = np.tile(rng.normal(size=(1, 64)), (3, 1)), rng.normal(size=(704, 64)) / 8
        y = x @ w.T
        made = to_float16(to_float16(x) @ to_float16(w).T)
        limit = within(limit_for("ffn_gate", "float16", "own"), product_spread(x, w, y, p), y)
        return max(float(got / most) for got, most in limit.measured(limit.measure(made, y)).values())

    assert max(map(used, range(300))) < 1
    monkeypatch.setattr("llama_ckpt.judging.step_spreads._of_rounded_inputs", lambda *_: (0.0, 0.0))
    assert max(map(used, range(300))) > 1


def test_what_is_made_a_few_rows_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    gate, up, out = rng.normal(size=(3, 50, 40)) * 5
    w, p = rng.normal(size=(40, 40)), PRECISIONS["bfloat16"]
    came = product_spread(up, w, up @ w.T, p, Spread(np.abs(gate) * 1e-3, mode=out * 1e-3))

    def made() -> tuple[Spread, Spread]:
        gated = gated_spread(gate * 4, up @ w.T, p, came, came)
        return gated, product_spread(out, w, out @ w.T, p, gated)

    whole = made()
    monkeypatch.setattr("llama_ckpt.judging.step_spreads.AT_ONCE", 300)
    for one, other in zip(whole, made(), strict=True):
        np.testing.assert_allclose(one.deviation, other.deviation, rtol=1e-5)
        assert one.mode is not None and other.mode is not None
        np.testing.assert_allclose(one.mode, other.mode, rtol=1e-6)
        # Parts may lean apart, and do not know of each other.
        assert other.equal[0] == pytest.approx(one.equal[0]) and other.equal[1] >= one.equal[1] * 0.999
        assert one.sums is not None and other.sums is not None
        np.testing.assert_allclose(one.sums.along, other.sums.along, rtol=1e-5)
