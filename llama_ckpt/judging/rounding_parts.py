"""The rounding error of attention's steps one by one: of scores, of probabilities, of the context.

`rounding` takes attention as one step, from q, k and v to its output. A dump that shows what lies between is
judged on that, so each part has a deviation of its own here. Arrays are stacks, `[heads, queries, keys]` or
`[heads, queries, head_dim]`, so that a few queries can be asked at a time; products of squares are taken in
float32, since of a deviation two digits count. numpy only.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.rounding_steps import CHUNKS, Precision, probabilities, sum_deviation

__all__ = ["context_deviation", "probability_deviation", "score_deviation"]

Array: TypeAlias = NDArray[Any]


def score_deviation(
    q: Array, k: Array, scores: Array, p: Precision, s_q: Array | None = None, s_k: Array | None = None
) -> Array:
    """Of `scores = q k^T`, `[..., queries, keys]`.

    Args:
        q: `[..., queries, head_dim]`; k: `[..., keys, head_dim]`; stacks broadcast.
        scores: what comes out.
        s_q, s_k: what q and k deviate by already, of their shapes.
    """
    deviation = sum_deviation(_terms(q, _turned(k)), q.shape[-1], scores, p)
    if s_q is not None:
        deviation = np.hypot(deviation, _carried(s_q, _turned(k)))
    if s_k is not None:
        deviation = np.hypot(deviation, _carried(q, _turned(s_k)))
    return deviation


def probability_deviation(
    scores: Array, s_scores: Array, visible: Array, scale: float, p: Precision
) -> tuple[Array, float]:
    """Of softmax over the visible keys `[heads, queries, keys]`, and the error that all of a row share.

    Args:
        scores: neither scaled nor masked; s_scores: their deviation.
        visible: `[queries, keys]`.
        scale: what scores are multiplied by.
    """
    heads, queries, keys = scores.shape
    seen = np.broadcast_to(visible, scores.shape).reshape(-1, keys)
    flat: Any = np.asarray(scores, np.float32).reshape(-1, keys)
    off: Any = np.asarray(s_scores, np.float32).reshape(-1, keys)
    _, deviation, shared = probabilities(flat, off, seen, scale, p)
    return deviation.reshape(heads, queries, keys), shared


def context_deviation(
    probs: Array,
    v: Array,
    context: Array,
    s_probs: Array,
    shared: float,
    p: Precision,
    s_v: Array | None = None,
) -> Array:
    """Of `context = probs v`, `[..., queries, head_dim]`.

    Args:
        probs: `[..., queries, keys]`, s_probs their deviation; shared: the relative one of a whole row.
        v: `[..., keys, head_dim]`; s_v: what it deviates by already.
        context: what comes out.
    """
    own = sum_deviation(_terms(probs, v), probs.shape[-1], context, p)
    squares = own**2 + _carried(s_probs, v) ** 2 + (shared * context) ** 2
    if s_v is not None:
        squares = squares + _carried(probs, s_v) ** 2
    return np.asarray(np.sqrt(squares))


def _carried(x: Array, w: Array) -> Array:
    """The root of the sums of squares of products `x [..., n, K]` with `w [..., K, out]`."""
    rows, scale = _scaled(x, -1)
    matrix, unit = _scaled(w, -2)
    return np.asarray(np.sqrt(np.square(rows) @ np.square(matrix)) * (scale * unit))


def _terms(x: Array, w: Array) -> tuple[Array, Array]:
    """As `product_terms_of`, of stacks `x [..., n, K]` and `w [..., K, out]`."""
    rows, scale = _scaled(x, -1)
    matrix, unit = _scaled(w, -2)
    norms = np.sqrt(np.square(rows) @ np.square(matrix))
    step = -(-x.shape[-1] // CHUNKS)
    running, squares = np.zeros_like(norms), np.zeros_like(norms)
    for start in range(0, x.shape[-1], step):
        running += rows[..., start : start + step] @ matrix[..., start : start + step, :]
        squares += np.square(running)
    scales = scale * unit
    return norms * scales, np.sqrt(squares / CHUNKS) * scales


def _scaled(x: Array, axis: int) -> tuple[NDArray[np.float32], Array]:
    """In float32, divided by the largest along an axis lest squares leave the range, and that."""
    largest = np.asarray(np.abs(x).max(axis=axis, keepdims=True, initial=0.0), np.float64)
    largest = np.where(largest > 0, largest, 1.0)
    return np.asarray(x / largest, np.float32), largest


def _turned(x: Array) -> Array:
    return x.swapaxes(-1, -2)
