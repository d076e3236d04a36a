"""Attention in float64, a few queries at a time, from whatever of it is known.

Scores and probabilities are the largest tensors that a Llama has, `[n, heads, n]`: 1 GB in float64 at
2,048 tokens and 32 heads. So they are computed in parts, and nobody holds a whole one that was not asked
for. What was recorded stands in for what is computed, step by step. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.attention_spreads import ContextSums
from llama_ckpt.judging.rounding_parts import ContextPart, probability_deviation, score_deviation
from llama_ckpt.judging.rounding_steps import PRECISIONS, Precision
from llama_ckpt.judging.spread import Spread

__all__ = ["PART", "Attention"]

Array: TypeAlias = NDArray[Any]

PART = 1 << 19
"""So many scores are in memory at a time: 4 MB in float64."""


@dataclass(frozen=True)
class Attention:
    """One block's attention up to its context.

    Attributes:
        q: `[n, n_heads, head_dim]`, k, v: `[n, n_kv_heads, head_dim]`, float64, q and k after RoPE.
        positions: `[n]`; a token sees those that are not later.
        dtype: the program's, a key of PRECISIONS.
        scores, probs: theirs, `[n, n_heads, n]`, where they were recorded and can be relied on.
        off: the spreads of q, k and v that were computed, by name.
    """

    q: Array
    k: Array
    v: Array
    positions: NDArray[np.int64]
    dtype: str
    scores: Array | None = None
    probs: Array | None = None
    off: dict[str, Spread] = field(default_factory=dict)

    def parts(self) -> Iterator[slice]:
        """The queries in runs whose scores fit into memory."""
        n, heads, _ = self.q.shape
        step = max(1, PART // (heads * n))
        return (slice(start, min(start + step, n)) for start in range(0, n, step))

    def visible(self, part: slice) -> NDArray[np.bool_]:
        """`[queries, keys]`: True where the query may look at the key."""
        seen: NDArray[np.bool_] = self.positions[None, :] <= self.positions[part, None]
        return seen

    def scores_of(self, part: slice) -> Array:
        """q k^T, neither scaled nor masked, `[heads, queries, keys]`."""
        return self._stacked(self._by_key_head(self.q[part]) @ self._keys)

    def scores_deviation(self, part: slice, scores: Array) -> Array:
        """What rounding may leave in `scores_of`."""
        s_q, s_k = self._off("q", part), self._off("k")
        q, k = self._by_key_head(self.q[part]), self.k.transpose(1, 0, 2)[:, None]
        grouped = scores.reshape(*q.shape[:2], *scores.shape[1:])
        return self._stacked(score_deviation(q, k, grouped, self._p, s_q, s_k))

    def known_scores(self, part: slice) -> Array:
        """Theirs, or what is computed."""
        return self.scores_of(part) if self.scores is None else _by_head(self.scores[part])

    def probs_of(self, part: slice) -> Array:
        """Softmax of the known scores over the visible keys, 0 elsewhere, `[heads, queries, keys]`."""
        scaled = np.where(self.visible(part), self.known_scores(part) * self._scale, -np.inf)
        scaled -= scaled.max(axis=-1, keepdims=True)
        probs: Array = np.exp(scaled, out=scaled)
        probs /= probs.sum(axis=-1, keepdims=True)
        return probs

    def _off(self, name: str, part: slice | None = None) -> Spread | None:
        """Of q, or of k or v, `[kv_heads, group or 1, queries or keys, head_dim]`; None where it is exact."""
        if name not in self.off:
            return None
        spread = self.off[name]

        def stacked(x: Array) -> Array:
            return x.transpose(1, 0, 2)[:, None] if part is None else self._by_key_head(x[part])

        return Spread(stacked(spread.whole), mode=None if spread.mode is None else stacked(spread.mode))

    def probs_deviation(self, part: slice) -> tuple[Array, Array]:
        """What rounding may leave in `probs_of`, and the relative error that all of a row share.

        As wide where scores were recorded: a fused kernel has some of its own, of which a recorder sees
        nothing; theirs are the middle of it. So are theirs of the probabilities for the context.
        """
        visible = self.visible(part)
        scores = np.where(visible, self.known_scores(part), 0.0)
        off = self.scores_deviation(part, scores)
        return probability_deviation(scores, off, visible, self._scale, self._p)

    def known_probs(self, part: slice) -> Array:
        """Theirs, or what is computed."""
        return self.probs_of(part) if self.probs is None else _by_head(self.probs[part])

    def context(self) -> Array:
        """The known probabilities times the values, `[n, n_heads * head_dim]`."""
        n, heads, _ = self.q.shape
        made = np.empty((n, heads, self.v.shape[-1]))
        for part in self.parts():
            made[part] = (
                (self._grouped(self.known_probs(part)) @ self._values)
                .transpose(2, 0, 1, 3)
                .reshape(-1, heads, self.v.shape[-1])
            )
        return made.reshape(n, -1)

    def context_spread(self, context: Array, out: Array | None, wo: Any) -> Spread:
        """What rounding may leave in `context`.

        Args:
            context: `[n, n_heads * head_dim]`.
            out, wo: the output that is made of it, and its weight, None where nobody knows them: what the
                errors of the context come to in the output's rows is told in passing.
        """
        n, heads, head_dim = self.q.shape[0], self.q.shape[1], self.v.shape[-1]
        made, modes = np.empty((n, heads, head_dim)), np.zeros((n, heads, head_dim))
        by_head, sums = context.reshape(made.shape), ContextSums(out, wo, made.shape)
        for part in self.parts():
            one = self._context_part(part, by_head[part])
            made[part] = _by_head(self._stacked(one.deviation))
            if one.mode is not None:
                modes[part] = _by_head(self._stacked(one.mode))
            towards = through = None
            if sums.towards is not None:
                towards, through = self._by_key_head(sums.towards[part]), self._by_key_head(sums.through)
            sums.see(one, part, towards, through)
        came = self.off.get("v")
        mode = modes.reshape(n, -1) if came is not None and came.mode is not None else None
        if self.off:
            return Spread(made.reshape(n, -1), mode=mode, aligned=True)
        return Spread(made.reshape(n, -1), mode=mode, sums=sums.own, onward=sums.onward)

    def _context_part(self, part: slice, context: Array) -> ContextPart:
        s_probs, shared = self.probs_deviation(part)
        return ContextPart(
            probs=self._grouped(self.known_probs(part)),
            v=self._values,
            s_probs=self._grouped(s_probs),
            shared=self._grouped(shared),
            context=self._by_key_head(context),
            keys=self.visible(part).sum(axis=1, keepdims=True),
            p=self._p,
            s_v=self._off("v"),
        )

    # -- how heads lie ------------------------------------------------------------------------------

    @property
    def _p(self) -> Precision:
        return PRECISIONS[self.dtype]

    @property
    def _scale(self) -> float:
        return float(1 / np.sqrt(self.q.shape[-1]))

    @cached_property
    def _keys(self) -> Array:
        """`[kv_heads, 1, head_dim, n]`"""
        return np.ascontiguousarray(self.k.transpose(1, 2, 0))[:, None]

    @cached_property
    def _values(self) -> Array:
        """`[kv_heads, 1, n, head_dim]`"""
        return np.ascontiguousarray(self.v.transpose(1, 0, 2))[:, None]

    def _by_key_head(self, x: Array) -> Array:
        """`[queries, heads, …]` as `[kv_heads, group, queries, …]`: head h reads key head h // group."""
        kv_heads = self.k.shape[1]
        return x.reshape(len(x), kv_heads, -1, x.shape[-1]).transpose(1, 2, 0, 3)

    def _grouped(self, x: Array) -> Array:
        """`[heads, queries, …]` as `[kv_heads, group, queries, …]`."""
        return x.reshape(self.k.shape[1], -1, *x.shape[1:])

    @staticmethod
    def _stacked(x: Array) -> Array:
        """`[kv_heads, group, queries, …]` as `[heads, queries, …]`."""
        return x.reshape(-1, *x.shape[2:])


def _by_head(x: Array) -> Array:
    """`[queries, heads, …]` as `[heads, queries, …]`, or back; float64."""
    return np.asarray(x, np.float64).transpose(1, 0, 2)
