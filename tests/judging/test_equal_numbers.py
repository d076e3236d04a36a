"""Equal numbers of queries and keys, which half precision rounds alike each time."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llama_ckpt.judging.equal_numbers import scores_together
from llama_ckpt.judging.rounding_steps import PRECISIONS


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
