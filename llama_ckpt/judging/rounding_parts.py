"""The rounding error of attention's steps one by one: of scores, of probabilities, of the context.

`rounding` takes attention as one step, from q, k and v to its output. A dump that shows what lies between is
judged on that, so each part has a deviation of its own here. Arrays are stacks, `[heads, queries, keys]` or
`[heads, queries, head_dim]`, so that a few queries can be asked at a time; products of squares are taken in
float32, since of a deviation two digits count. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.rounding_steps import CHUNKS, Precision, probabilities, sum_deviation
from llama_ckpt.judging.spread import Spread

__all__ = ["ContextPart", "probability_deviation", "score_deviation"]

Array: TypeAlias = NDArray[Any]


OF_ONE_NORM = 1.25
"""Of what modes of q and of k come to: a norm's root has both off together, and no chance evens it out."""


def score_deviation(
    q: Array, k: Array, scores: Array, p: Precision, s_q: Spread | None = None, s_k: Spread | None = None
) -> Array:
    """Of `scores = q k^T`, `[..., queries, keys]`.

    Args:
        q: `[..., queries, head_dim]`; k: `[..., keys, head_dim]`; stacks broadcast.
        scores: what comes out.
        s_q, s_k: what q and k deviate by already, of their shapes.
    """
    squares = sum_deviation(_terms(q, _turned(k)), q.shape[-1], scores, p) ** 2
    mode = np.zeros(())
    if s_q is not None:
        squares = squares + _carried(s_q.deviation, _turned(k)) ** 2
        mode = mode + _mode_scored(s_q, k)
    if s_k is not None:
        squares = squares + _turned(_carried(s_k.deviation, _turned(q)) ** 2)
        mode = mode + _turned(_mode_scored(s_k, q))
    return np.asarray(np.sqrt(squares + np.square(OF_ONE_NORM * mode)))


def _mode_scored(spread: Spread, other: Array) -> Array:
    """What a spread's mode comes to in the scores, `[its rows, the other's]`."""
    return np.zeros((1, 1)) if spread.mode is None else np.abs(spread.mode @ _turned(other))


def probability_deviation(
    scores: Array, s_scores: Array, visible: Array, scale: float, p: Precision
) -> tuple[Array, Array]:
    """Of softmax over the visible keys `[heads, queries, keys]`, and what a row shares `[heads, queries, 1]`.

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
    return deviation.reshape(heads, queries, keys), shared.reshape(heads, queries, 1)


@dataclass(frozen=True)
class ContextPart:
    """Some queries' contexts, `[..., queries, head_dim]`, and how far they may be off.

    Attributes:
        probs, v: what it was made of, `[..., queries, keys]` and `[..., keys, head_dim]`.
        s_probs, shared: the deviation of the probabilities, and what a row has in common, a share.
        context: what came out.
        s_v: what v deviates by already.
        keys: how many each query sees, `[queries, 1]`.
    """

    probs: Array
    v: Array
    s_probs: Array
    shared: Array
    context: Array
    keys: Array
    p: Precision
    s_v: Spread | None = None

    @cached_property
    def own(self) -> Array:
        """What the sum over the keys leaves."""
        return sum_deviation(_terms(self.probs, self.v), self.keys, self.context, self.p)

    @cached_property
    def of_the_sum(self) -> Array:
        """What a row is off by together since its probabilities' sum is."""
        return np.asarray(self.shared * self.context)

    @cached_property
    def mode(self) -> Array | None:
        """What a row is off by together, where values came with such."""
        if self.s_v is None or self.s_v.mode is None:
            return None
        mode: Array = np.matmul(self.probs, self.s_v.mode)
        return mode

    @cached_property
    def deviation(self) -> Array:
        """Of each element."""
        squares = self.own**2 + _carried(self.s_probs, self.v) ** 2 + self.of_the_sum**2
        if self.s_v is not None:
            squares = squares + _carried(self.probs, self.s_v.deviation) ** 2
        return np.asarray(np.sqrt(squares if self.mode is None else squares + self.mode**2))

    def towards(self, direction: Array) -> Array:
        """The squares of what errors add up to along a direction `[..., queries or 1, head_dim]`.

        Summed over all but the queries: an error of a probability moves all of its head's context at once.
        """
        apart = np.sum((self.own * direction) ** 2, axis=-1)
        together = np.sum(self.of_the_sum * direction, axis=-1) ** 2
        moved = np.sum((self.s_probs * (direction @ _turned(self.v))) ** 2, axis=-1)
        squares: Array = apart + together + moved
        summed: Array = squares.reshape(-1, squares.shape[-1]).sum(axis=0)
        return summed


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
