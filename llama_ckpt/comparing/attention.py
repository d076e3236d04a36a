"""Attention in float64, a few queries at a time, from whatever of it is known.

Scores and probabilities are the largest tensors that a Llama has, `[n, heads, n]`: 1 GB in float64 at
2,048 tokens and 32 heads. So they are computed in parts, and nobody holds a whole one that was not asked
for; nor is computed what no query sees, half of all where tokens stand in order. What was recorded stands in
for what is computed, step by step. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.attention_spreads import ContextSums, probs_sums, sums_mode, swallowed
from llama_ckpt.judging.equal_numbers import scores_together
from llama_ckpt.judging.rounding_modes import together
from llama_ckpt.judging.rounding_parts import ContextPart, probability_deviation, score_deviation
from llama_ckpt.judging.rounding_steps import PRECISIONS, Precision
from llama_ckpt.judging.spread import RowSums, Spread
from llama_ckpt.judging.step_spreads import EMULATED, FUSED, scores_spread

__all__ = ["Attention", "Part"]

Array: TypeAlias = NDArray[Any]

PART = 1 << 16
"""So many scores are in memory at a time, several times over: half a MB each in float64."""

LEAST = 32
"""So many queries at least are looked at together, since the keys are prepared for each such part."""

KEPT = 1 << 22
"""Up to so many scores are kept once computed: 32 MB in float64."""


@dataclass(frozen=True)
class Part:
    """Some queries, and the keys that are looked at: the first ones, up to the last that one of them sees.

    Attributes:
        queries: which.
        keys: how many.
    """

    queries: slice
    keys: int


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
    _kept: dict[tuple[str, int, int], Any] = field(default_factory=dict)

    def with_off(self, off: dict[str, Spread]) -> Attention:
        """The same on inputs that deviate already."""
        return replace(self, off=off, _kept={})

    def _once(self, what: str, part: Part, make: Callable[[], Any]) -> Any:
        """What is asked for several times, kept where it is small."""
        n, heads, _ = self.shape
        if n * heads * n > KEPT:
            return make()
        key = what, part.queries.start, part.keys
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def let_go(self) -> None:
        """Keep nothing that was computed; what is asked for again is computed again."""
        self._kept.clear()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of scores and probabilities."""
        n, heads, _ = self.q.shape
        return n, heads, n

    def parts(self) -> Iterator[Part]:
        """All queries in runs whose scores fit into memory."""
        n, heads, _ = self.shape
        step = max(LEAST, PART // (heads * n))
        for start in range(0, n, step):
            queries = slice(start, min(start + step, n))
            seen = np.flatnonzero(self.positions <= self.positions[queries].max())
            yield Part(queries, int(seen[-1]) + 1)

    def whole_parts(self) -> Iterator[Part]:
        """The same, with all keys."""
        return (Part(part.queries, len(self.k)) for part in self.parts())

    def visible(self, part: Part) -> NDArray[np.bool_]:
        """`[queries, keys]`: True where the query may look at the key."""
        seen: NDArray[np.bool_] = self.positions[None, : part.keys] <= self.positions[part.queries, None]
        return seen

    def scores_of(self, part: Part) -> Array:
        """q k^T, neither scaled nor masked, `[heads, queries, keys]`."""

        def make() -> Array:
            return self._stacked(self._by_key_head(self.q[part.queries]) @ self._keys[..., : part.keys])

        return np.asarray(self._once("scores", part, make))

    def scores_deviation(self, part: Part, scores: Array) -> Array:
        """What rounding may leave in `scores_of`, or in what they recorded of these."""

        def make() -> Array:
            s_q, s_k = self._off("q", part.queries), self._off("k", keys=part.keys)
            q, k = self._by_key_head(self.q[part.queries]), self.k[: part.keys].transpose(1, 0, 2)[:, None]
            return self._stacked(score_deviation(q, k, self._grouped(scores), self._p, s_q, s_k))

        # Only half precision rounds the scores themselves: else it is one for the oracle's and for theirs.
        if self._p.half:
            return make()
        return np.asarray(self._once("scores' deviation", part, lambda: np.asarray(make(), np.float32)))

    def scores_spread(self, part: Part) -> tuple[Array, Spread]:
        """Scores as they are judged, `[queries, heads, keys]`, and what rounding may leave there."""
        scores = self.scores_of(part)
        off = self.scores_deviation(part, scores).transpose(1, 0, 2)
        share = (len(off) / len(self.q)) ** 2  # what all queries come to, they come to evenly
        equal = share * self._equal[0], share * self._equal[1]
        return scores.transpose(1, 0, 2), scores_spread(off, self._p, aligned=bool(self.off), equal=equal)

    @cached_property
    def _equal(self) -> tuple[float, float]:
        return scores_together(self.q, self.k, self.positions, self._p)

    def known_scores(self, part: Part) -> Array:
        """Theirs, or what is computed."""
        return self.scores_of(part) if self.scores is None else _recorded(self.scores, part)

    def probs_of(self, part: Part) -> Array:
        """Softmax of the known scores over the visible keys, 0 elsewhere, `[heads, queries, keys]`."""
        return np.asarray(self._once("probs", part, lambda: self._softmax(part)))

    def _softmax(self, part: Part) -> Array:
        scaled = np.where(self.visible(part), self.known_scores(part) * self._scale, -np.inf)
        scaled -= scaled.max(axis=-1, keepdims=True)
        probs: Array = np.exp(scaled, out=scaled)
        probs /= probs.sum(axis=-1, keepdims=True)
        return probs

    def probs_deviation(self, part: Part) -> tuple[Array, Array]:
        """What rounding may leave in `probs_of`, and the relative error that all of a row share.

        As wide where scores were recorded: a fused kernel has some of its own, of which a recorder sees
        nothing; theirs are the middle of it. So are theirs of the probabilities for the context.
        """

        def make() -> tuple[Array, Array]:
            visible = self.visible(part)
            scores = np.where(visible, self.known_scores(part), 0.0)
            off = self.scores_deviation(part, scores)
            deviation, shared = probability_deviation(scores, off, visible, self._scale, self._p)
            return np.asarray(deviation, np.float32), shared

        found: tuple[Array, Array] = self._once("probs' deviation", part, make)
        return found

    def probs_spread(self, part: Part) -> tuple[Array, Spread]:
        """Probabilities as they are judged, `[queries, heads, keys]`, and what rounding may leave there."""
        probs, (off, shared) = self.probs_of(part), self.probs_deviation(part)
        sums = None if self.off else RowSums(*np.sqrt(probs_sums(probs, off, shared)))
        lost, energy = swallowed(probs, self._p.u)
        off, common = off.transpose(1, 0, 2), lost / energy
        return probs.transpose(1, 0, 2), Spread(off, aligned=bool(self.off), sums=sums, everywhere=common)

    @property
    def _is_fused(self) -> bool:
        """Where neither scores nor probabilities were recorded, they may never have lain anywhere."""
        return self.scores is None and self.probs is None

    def _off(self, name: str, queries: slice | None = None, keys: int | None = None) -> Spread | None:
        """Of q, or of k or v, `[kv_heads, group or 1, queries or keys, head_dim]`; None where it is exact."""
        spread = self.off.get(name)
        if self._is_fused:  # each of its numbers may have been two of TF32
            lost = EMULATED * self._p.u * np.abs(getattr(self, name))
            spread = (
                Spread(lost)
                if spread is None
                else replace(spread, deviation=np.hypot(spread.deviation, lost))
            )
        if spread is None:
            return None

        def stacked(x: Array) -> Array:
            return self._by_key_head(x[queries]) if queries else x[:keys].transpose(1, 0, 2)[:, None]

        return Spread(stacked(spread.whole), mode=None if spread.mode is None else stacked(spread.mode))

    def known_probs(self, part: Part) -> Array:
        """Theirs, or what is computed."""
        return self.probs_of(part) if self.probs is None else _recorded(self.probs, part)

    def _as_they_have_it(self, part: Part) -> Part:
        """With all keys where their probabilities are not 0 for what no query sees."""
        if self.probs is None or not self.probs[part.queries, :, part.keys :].any():
            return part
        return Part(part.queries, len(self.k))

    def context(self) -> Array:
        """The known probabilities times the values, `[n, n_heads * head_dim]`."""
        n, heads, _ = self.q.shape
        made = np.empty((n, heads, self.v.shape[-1]))
        for queries in self.parts():
            part = self._as_they_have_it(queries)
            mixed = self._grouped(self.known_probs(part)) @ self._values[..., : part.keys, :]
            made[part.queries] = _by_head(self._stacked(mixed))
        return made.reshape(n, -1)

    def context_spread(self, context: Array, out: Array | None, wo: Any) -> Spread:
        """What rounding may leave in `context`.

        Args:
            context: `[n, n_heads * head_dim]`.
            out, wo: the output that is made of it, and its weight, None where nobody knows them: what the
                errors of the context come to in the output's rows is told in passing.
        """
        n, heads, head_dim = self.q.shape[0], self.q.shape[1], self.v.shape[-1]
        made, modes, of_sums = (np.zeros((n, heads, head_dim)) for _ in range(3))
        by_head, sums = context.reshape(made.shape), ContextSums(out, wo, made.shape)
        for queries in self.parts():
            part = self._as_they_have_it(queries)
            one = self._context_part(part, by_head[part.queries])
            made[part.queries] = _by_head(self._stacked(one.deviation))
            of_sums[part.queries] = _by_head(self._stacked(one.of_the_sum))
            if one.mode is not None:
                modes[part.queries] = _by_head(self._stacked(one.mode))
            towards = through = None
            if sums.towards is not None:
                towards = self._by_key_head(sums.towards[part.queries])
                through = self._by_key_head(sums.through)
            sums.see(one, part.queries, towards, through)
        came = self.off.get("v")
        off, mode = made.reshape(n, -1), sums_mode(of_sums)
        has_mode = came is not None and came.mode is not None
        if has_mode:
            mode = np.asarray(together(mode, modes.reshape(n, -1)))
        kept: dict[str, Any] = {"mode": mode, "apart": None if has_mode else off}
        kept["everywhere"] = FUSED * self._p.u if self._is_fused else 0.0
        if self.off:
            return Spread(off, aligned=True, **kept)
        return Spread(off, sums=sums.own, onward=sums.onward, **kept)

    def _context_part(self, part: Part, context: Array) -> ContextPart:
        s_probs, shared = self.probs_deviation(part)
        return ContextPart(
            probs=self._grouped(self.known_probs(part)),
            v=self._values[..., : part.keys, :],
            s_probs=self._grouped(s_probs),
            shared=self._grouped(shared),
            context=self._by_key_head(context),
            keys=self.visible(part).sum(axis=1, keepdims=True),
            p=self._p,
            s_v=self._off("v", keys=part.keys),
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


def _recorded(theirs: Array, part: Part) -> Array:
    return _by_head(theirs[part.queries, :, : part.keys])


def _by_head(x: Array) -> Array:
    """`[queries, heads, …]` as `[heads, queries, …]`, or back; float64."""
    return np.asarray(x, np.float64).transpose(1, 0, 2)
