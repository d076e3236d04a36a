"""From logits to the next token, in numpy float64: the last row, the largest, probabilities to draw with."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.oracle.c00_products import Array, Tap, _float64, _normalized_exp

__all__ = ["argmax", "last_logits", "softmax"]


def last_logits(logits: ArrayLike, tap: Tap | None = None) -> Array:
    """The last token's row of `logits [n, vocab]`, the one that the next token is drawn from."""
    last: Array = _float64(logits)[-1]
    return last


def argmax(logits: ArrayLike, tap: Tap | None = None) -> NDArray[np.int64]:
    """The id of the largest of `logits [..., vocab]`; of equal ones the lowest id.

    As in llama.cpp, which starts at id 0 and moves on only to something greater: a NaN is never
    moved to, and where id 0 itself is NaN, nothing is greater.
    """
    x = _float64(logits)
    best = np.argmax(np.where(np.isnan(x), -np.inf, x), axis=-1)
    return np.where(np.isnan(x[..., 0]), 0, best).astype(np.int64)


def softmax(
    logits: ArrayLike,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    tap: Tap | None = None,
) -> Array:
    """The probabilities that a token is drawn with, from `logits [..., vocab]`; 0 where cut off.

    In llama.cpp's order: top-k, top-p among what is left, min-p, and only then the temperature.
    top_k <= 0, top_p >= 1 and min_p <= 0 cut nothing; one token always stays. Of equal logits the
    lower id counts as the larger. A temperature below 1e-6 gives all to the largest.
    """
    x = _float64(logits)
    order = np.argsort(-x, axis=-1, kind="stable")  # best first
    ranked = np.take_along_axis(x, order, axis=-1)
    kept = np.ones(ranked.shape, dtype=bool)
    if top_k > 0:
        kept[..., top_k:] = False
    if top_p < 1:
        probs = _normalized_exp(np.where(kept, ranked, -np.inf))
        reached = np.cumsum(probs, axis=-1) >= top_p
        kept[..., 1:] &= ~reached[..., :-1]  # the token that reaches top_p stays, the next goes
    if min_p > 0:
        kept[..., 1:] &= ranked[..., 1:] >= ranked[..., :1] + np.log(min_p)  # p >= min_p * largest p
    if temperature < 1e-6:
        kept[..., 1:] = False
        temperature = 1.0
    result = np.empty_like(x)
    np.put_along_axis(result, order, _normalized_exp(np.where(kept, ranked, -np.inf) / temperature), axis=-1)
    return result
