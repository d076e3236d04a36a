"""What scores lean by where equal numbers of queries, or of keys, are rounded alike.

A program may round q and k once more before their product: torch's attention multiplies both by the root of
the scale. In half precision a token that comes again has equal numbers wherever RoPE turns slowly, and these
round alike each time: 72 scores of a repeated token were too small together by seven times what errors that
stand apart come to. The own deviation has every rounding alone, so what is told here comes beside it.
numpy only.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.rounding_steps import Precision, to_half

__all__ = ["scores_together"]

Array: TypeAlias = NDArray[np.float64]

BLOCK = 64
"""Tokens whose scores among themselves are looked at one by one; of blocks before, the sums will do."""


def scores_together(q: Array, k: Array, positions: NDArray[np.int64], p: Precision) -> tuple[float, float]:
    """What the scores' errors add up to along the scores and plain, squares, beyond each number's own.

    Args:
        q: `[n, heads, head_dim]`, k: `[n, kv_heads, head_dim]`, in order or not. positions: `[n]`; a token
            sees those that are not later.
        p: the program's precision; in float32 equal numbers are rare, and nothing is told.
    """
    if not p.half or len(q) == 1:
        return 0.0, 0.0
    order = np.argsort(positions, kind="stable")
    q, k = (np.asarray(x, np.float64)[order].transpose(1, 0, 2) for x in (q, k))
    along, plain, group = 0.0, 0.0, len(q) // len(k)
    for key, keys in enumerate(k):
        towards = np.zeros((2, *keys.shape))
        for queries in q[key * group : (key + 1) * group]:
            # A query's error meets the keys that it sees; a key's, the queries that see it: time runs back.
            seen = _met(queries, keys)
            towards += _met(keys[::-1], queries[::-1])[:, ::-1]
            along, plain = np.add((along, plain), _together(queries, seen, p))
        along, plain = np.add((along, plain), _together(keys, towards, p))
    return max(float(along), 0.0), max(float(plain), 0.0)


def _met(x: Array, seen: Array) -> Array:
    """What each number's error is multiplied by, along the scores and plain, `[2, n, head_dim]`."""
    along, plain = np.empty_like(x), np.cumsum(seen, axis=0)
    before = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), BLOCK):
        one = slice(start, start + BLOCK)
        among = np.tril(x[one] @ seen[one].T)
        along[one] = x[one] @ before + among @ seen[one]
        before += seen[one].T @ seen[one]
    return np.stack([along, plain])


def _together(x: Array, towards: Array, p: Precision) -> Array:
    """Of x `[n, head_dim]` what equal numbers of a feature come to together, less what each does alone."""
    columns = np.ascontiguousarray(x.T)
    codes = _codes(columns, p)
    order = np.argsort(codes, axis=1, kind="stable")
    codes = np.take_along_axis(codes, order, axis=1)
    first = np.ones(codes.shape, bool)
    first[:, 1:] = codes[:, 1:] != codes[:, :-1]
    starts = np.flatnonzero(first)
    found = []
    for each in towards:
        errors = np.take_along_axis(p.half * columns * each.T, order, axis=1).ravel()
        sums = np.add.reduceat(errors, starts)
        found.append(float(sums @ sums - errors @ errors))
    return np.array(found)


def _codes(x: Array, p: Precision) -> NDArray[np.uint16]:
    """A number for each value that half precision tells apart, which sort fast."""
    if p.largest < np.inf:
        with np.errstate(over="ignore"):
            return x.astype(np.float16).view(np.uint16)
    return (to_half(x, p).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
