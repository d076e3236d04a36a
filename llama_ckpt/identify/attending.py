"""An attention's inputs, what is right of it, and what follows from other scores, probabilities or contexts.

Heads come first: scores and probabilities are `[heads, rows, keys]` here. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.record import Asked
from llama_ckpt.judging.matching import leaves_at_most

__all__ = ["MOST", "Attending", "attending", "softmax"]

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

MOST = 1 << 24
"""Of attentions with more scores nothing is identified: each guess would take seconds."""

INNER = ("attn_scores", "attn_probs", "attn_context", "attn_out")
"""The points of an attention in the order in which they follow from each other."""


@dataclass(frozen=True)
class Attending:
    """A wrong attention.

    Attributes:
        asked: its tensors.
        q, k, v: `[heads, n, d]` and `[kv_heads, n, d]`; wo: `[width, heads * d]`.
        positions, sequence_ids: of the rows.
    """

    asked: Asked
    q: Array
    k: Array
    v: Array
    wo: Any
    positions: Array
    sequence_ids: Array | None

    @property
    def n(self) -> int:
        """Rows, and keys."""
        return int(self.q.shape[1])

    @property
    def heads(self) -> int:
        """Query heads."""
        return len(self.q)

    @cached_property
    def reads(self) -> NDArray[np.int64]:
        """The key head that each query head reads, `[heads]`."""
        return np.arange(self.heads) // (self.heads // len(self.k))

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.q.shape[-1] ** -0.5)

    @cached_property
    def scores(self) -> Array:
        """The right ones, neither scaled nor masked."""
        return self.scores_of(self.reads)

    def scores_of(self, reads: NDArray[np.int64]) -> Array:
        """Scores where query heads read these key heads."""
        return np.asarray(self.q @ self.k[reads].transpose(0, 2, 1))

    @cached_property
    def scaled(self) -> Array:
        """The right scores, scaled and not masked."""
        return self.scores * self.scale

    @cached_property
    def visible(self) -> Mask:
        """`[rows, keys]`: what each row should see."""
        seen = self.positions[None, :] <= self.positions[:, None]
        if self.sequence_ids is not None:
            seen &= self.sequence_ids[None, :] == self.sequence_ids[:, None]
        return np.asarray(seen)

    @cached_property
    def probs(self) -> Array:
        """The right probabilities."""
        return softmax(self.scaled, self.visible)

    @property
    def tolerance(self) -> float:
        """What a guess may leave at the first wrong point and be worth trying."""
        limit = self.asked.first.limit
        return 8 * max(leaves_at_most(limit), limit.row_err)

    def of_heads(self, heads: NDArray[np.int64]) -> Attending:
        """Some query heads alone, all of those of one key head or of several, in order."""
        keys = np.unique(self.reads[heads])
        return replace(self, q=self.q[heads], k=self.k[keys], v=self.v[keys])

    def context_of(self, probs: Array, reads: NDArray[np.int64] | None = None) -> Array:
        """`[n, heads * d]`"""
        mixed = probs @ self.v[self.reads if reads is None else reads]
        return np.asarray(mixed.transpose(1, 0, 2).reshape(self.n, -1))

    def following(
        self,
        *,
        scores: Array | None = None,
        probs: Array | None = None,
        context: Array | None = None,
        values: NDArray[np.int64] | None = None,
    ) -> dict[str, Array]:
        """The tensors of the call, by full name, that follow from what is given; the others are right.

        Args:
            values: the value head that each query head reads.
        """
        made: dict[str, Array] = {}
        if scores is not None:
            made["attn_scores"] = scores.transpose(1, 0, 2)
        if probs is not None:
            made["attn_probs"] = probs.transpose(1, 0, 2)
            context = self.context_of(probs, values) if context is None else context
        if context is not None:
            made["attn_context"] = context
            made["attn_out"] = np.matmul(context, np.asarray(self.wo).T)
        found = {point: self.asked.of(point) for point in made}
        return {one.name: made[point] for point, one in found.items() if one is not None}

    def theirs(self, point: str) -> Array | None:
        """Their scores or probabilities, heads first; None where there are none of that shape."""
        found = self.asked.theirs(point)
        if found is None or found.shape != (self.n, self.heads, self.n):
            return None
        return found.transpose(1, 0, 2)


def softmax(scaled: Array, visible: Mask) -> Array:
    """Over the keys that each row sees, `[rows, keys]` or `[heads, rows, keys]`; NaN where it sees none."""
    masked = np.where(visible, scaled, -np.inf)
    e = np.exp(masked - masked.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def attending(asked: Asked) -> Attending | None:
    """What was attended to; None where the call is no attention, or too large."""
    given = asked.given
    if asked.first.case.function != "attention" or asked.point not in INNER[:3]:
        return None
    q, k, v = (np.asarray(given[name], np.float64) for name in "qkv")
    n, heads, _ = q.shape
    if heads * n * len(k) > MOST or len(k) != n or asked.x.shape != asked.o.shape:
        return None
    ids = given.get("sequence_ids")
    q, k, v = (np.ascontiguousarray(one.transpose(1, 0, 2)) for one in (q, k, v))
    sequence = None if ids is None else np.asarray(ids)
    return Attending(asked, q, k, v, given["wo"], np.asarray(given["positions"]), sequence)
