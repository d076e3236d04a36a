"""What attention leaves, from q, k and v to its context, and what that comes to in the output's sums.

An error of one probability moves all of a head's context at once, so the context's elements do not err
apart. Whatever product comes after, the sums of its rows' errors are told here, while the probabilities are
at hand: `ContextSums`. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.rounding_modes import column_means, together
from llama_ckpt.judging.rounding_parts import ContextPart, probability_deviation, score_deviation
from llama_ckpt.judging.rounding_steps import SWALLOWED, Precision
from llama_ckpt.judging.spread import RowSums, Spread

__all__ = ["AttentionSpreads", "ContextSums", "probs_sums", "sums_mode", "swallowed"]

Array: TypeAlias = NDArray[Any]


def probs_sums(probs: Array, off: Array, shared: Array) -> Array:
    """What errors of probabilities `[heads, queries, keys]` add up to, along them and plain, `[2, queries]`.

    Squares; off: the deviation. shared: of it what a row has in common, a share, `[heads, queries, 1]`.
    """
    common = shared[..., 0] ** 2
    along = np.sum((off * probs) ** 2, axis=-1) + common * np.sum(probs**2, axis=-1) ** 2
    plain = np.sum(off**2, axis=-1) + common * probs.sum(axis=-1) ** 2
    return np.stack([along.sum(axis=0), plain.sum(axis=0)])


def swallowed(probs: Array, u: float) -> tuple[float, float]:
    """What probabilities `[..., keys]` may be too large by where their sum is made of one after the other.

    A term below a rounding of what is added up already is lost, and hundreds of them are: tinygrad's in
    SmolLM2 at 600 tokens, whose first has most of the sum, are all too large by 2.4e-7. Shares of the rows,
    each times the row's energy, in sum; and the energy.
    """
    little = probs < u * probs.max(axis=-1, keepdims=True)
    energy = np.einsum("...k,...k->...", probs, probs)
    return SWALLOWED * float(np.vdot(np.einsum("...k,...k->...", probs, little), energy)), float(energy.sum())


def sums_mode(of_sums: Array) -> Array:
    """What a row of contexts is off by together, `[n, heads * head_dim]`, from each head's part of it.

    A head's sum of probabilities has all of that head off, and another's has its own: of many heads this
    comes to the root of their number, where weights send them all the same way.
    """
    n, heads, head_dim = of_sums.shape
    return np.asarray(of_sums / heads**0.5).reshape(n, heads * head_dim)


class ContextSums:
    """What errors of contexts add up to, in the rows of the context and of the output, squares, `[n]`.

    Args:
        out: attention's output `[n, width]` and wo, its weight `[width, heads * head_dim]`; None where
            nobody knows them, then only the context's own sums are told.
        shape: of the context, `[n, heads, head_dim]`.
    """

    def __init__(self, out: Array | None, wo: Any, shape: tuple[int, int, int]) -> None:
        n, heads, head_dim = shape
        self.towards: Array | None = None
        if out is not None and wo is not None:
            # Where an error of the context would have to point for the output to be off along itself.
            self.towards = np.matmul(out, wo).reshape(shape)
            self.through = (wo.shape[0] * column_means(wo)).reshape(1, heads, head_dim)
        self._own, self._onward = np.zeros((2, n)), np.zeros((2, n))

    def see(self, part: ContextPart, queries: slice, towards: Array | None, through: Array | None) -> None:
        """Add some queries of some heads; the directions in the part's order of axes."""
        off, context = part.deviation, part.context
        shared = part.shared[..., 0]
        along = np.sum((off * context) ** 2, axis=-1) + (shared * np.sum(context**2, axis=-1)) ** 2
        plain = np.sum(off**2, axis=-1) + (shared * context.sum(axis=-1)) ** 2
        for sums, squares in zip(self._own, (along, plain), strict=True):
            sums[queries] += squares.reshape(-1, squares.shape[-1]).sum(axis=0)
        if towards is not None and through is not None:
            for sums, direction in zip(self._onward, (towards, through), strict=True):
                sums[queries] += part.towards(direction)

    @property
    def own(self) -> RowSums:
        """Of the context."""
        return RowSums(*np.sqrt(self._own))

    @property
    def onward(self) -> RowSums | None:
        """Of the output."""
        return None if self.towards is None else RowSums(*np.sqrt(self._onward))


class AttentionSpreads:
    """What rounding may leave of attention on exact or computed q, k and v, head by head.

    Args:
        q: `[n, heads, head_dim]`; k, v: `[n, kv_heads, head_dim]`. visible: `[n, n]`.
        p: the program's precision. carried: the spreads of q, k and v, by name.
        sums: told of the contexts.

    Attributes:
        scores, probs: deviations, `[n, heads, n]`, float32: two digits count, and these are large.
        context: `[n, heads * head_dim]`.
    """

    def __init__(
        self,
        q: Array,
        k: Array,
        v: Array,
        visible: NDArray[np.bool_],
        p: Precision,
        carried: Mapping[str, Spread],
        sums: ContextSums,
    ) -> None:
        n, heads, _ = q.shape
        self.scores: Any = np.empty((n, heads, len(k)), np.float32)
        self.probs: Any = np.empty_like(self.scores)
        self._sums, self._carried, self._p, self._visible = sums, carried, p, visible
        self._context, self._off, self._of_sums = np.empty_like(q), np.empty_like(q), np.empty_like(q)
        self._mode = np.zeros_like(q)
        self._probs_sums, self._swallowed = np.zeros((2, n)), np.zeros(2)
        for head in range(heads):
            key = head // (heads // k.shape[1])
            self._add(head, q[None, :, head], k[None, :, key], v[None, :, key], key)

    def _add(self, head: int, q: Array, k: Array, v: Array, key: int) -> None:
        scores = q @ k.swapaxes(-1, -2)
        off = score_deviation(q, k, scores, self._p, self._came("q", head), self._came("k", key))
        scale = q.shape[-1] ** -0.5
        s_probs, shared = probability_deviation(scores, off, self._visible, scale, self._p)
        self.scores[:, head], self.probs[:, head] = off[0], s_probs[0]
        scaled = np.where(self._visible, scores * scale, -np.inf)
        probs = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        probs /= probs.sum(axis=-1, keepdims=True)
        self._probs_sums += probs_sums(probs, s_probs, shared)
        self._swallowed += swallowed(probs, self._p.u)
        keys = self._visible.sum(axis=1, keepdims=True)
        part = ContextPart(probs, v, s_probs, shared, probs @ v, keys, self._p, self._came("v", key))
        self._context[:, head], self._off[:, head] = part.context[0], part.deviation[0]
        self._of_sums[:, head] = part.of_the_sum[0]
        if part.mode is not None:
            self._mode[:, head] = part.mode[0]
        towards, through = self._sums.towards, None
        if towards is not None:
            towards, through = towards[None, :, head], self._sums.through[:, head][None]
        self._sums.see(part, slice(None), towards, through)

    def _came(self, name: str, head: int) -> Spread | None:
        """Of one head of q, k or v; None where it is exact."""
        spread = self._carried.get(name)
        if spread is None:
            return None
        mode = None if spread.mode is None else spread.mode[None, :, head]
        return Spread(spread.whole[None, :, head], mode=mode)

    @property
    def context(self) -> Array:
        """`[n, heads * head_dim]`"""
        return self._context.reshape(len(self._context), -1)

    @property
    def probs_spread(self) -> Spread:
        """Of the probabilities: a row of a head has its sum in common."""
        aligned = bool(self._carried)
        sums = None if aligned else RowSums(*np.sqrt(self._probs_sums))
        lost, energy = self._swallowed
        return Spread(self.probs, aligned=aligned, sums=sums, everywhere=float(lost / energy))

    @property
    def context_spread(self) -> Spread:
        """Of the context."""
        off = self._off.reshape(len(self._off), -1)
        carried = self._carried.get("v")
        has_mode = carried is not None and carried.mode is not None
        mode = together(sums_mode(self._of_sums), self._mode.reshape(off.shape) if has_mode else None)
        if self._carried:
            return Spread(off, mode=mode, apart=None if has_mode else off, aligned=True)
        return Spread(off, mode=mode, apart=off, sums=self._sums.own, onward=self._sums.onward)
