"""By how much RoPE's angles are off, read from the pairs that it turned.

Rounding moves a pair any way, a wrong angle moves it sideways, in all heads alike, and a wrong frequency by
so much more with every position. So sideways movements are looked at by themselves: each token's, for every
pair over all heads, and for every pair the slope with which they grow over the tokens. In half precision
a frequency that was rounded is lost in the rounding of products long before its slope is; in float32 a
factor of the angles shows in the slope that is far too small for an error of the whole tensor.

numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.rounding_steps import Precision, angle_error

__all__ = ["Angles", "Turn", "TurnLimit", "angles_of", "sideways", "sideways_deviation", "turns_alike"]

Array: TypeAlias = NDArray[np.float64]

ANGLE, SLOPE = 3.0, 3.0
"""What a token's angle and a pair's slope may be of the deviations that rounding leaves of them."""

SHARED = 0.4
"""Of the square of what a pair may be moved sideways: its cosine and sine, rounded once for all heads."""

AS_LONG = 1e-9
"""Of the longest pair: so much shorter or longer is one that was only turned, in float64."""

STEADY, IN_STEP = 4.0, 256.0
"""In half precision: so many roundings a pair has to be turned by before it errs another way; and the same
where tokens are equal: steps of nearly a whole number of roundings leave the same one again and again."""


@dataclass(frozen=True)
class Angles:
    """What is known of a rotation before anything is measured.

    Attributes:
        positions: `[n]`.
        off: by how many radians angles as right programs build them may be off, `[n, pairs]`; zeros where
            they have to be exact.
        alike: how many tokens may err alike, `[pairs]`: a pair that hardly turns from one to the next is
            rounded the same way each time.
        besides: by how many radians more each may deviate, `[n, pairs]`; None for no more.
    """

    positions: Array
    off: Array
    alike: Array
    besides: Array | None = None

    @property
    def pairs(self) -> int:
        """Of a head."""
        return int(self.off.shape[1])

    def rows(self, part: Any) -> Angles:
        """Of some tokens."""
        besides = None if self.besides is None else self.besides[part]
        return replace(self, positions=self.positions[part], off=self.off[part], besides=besides)

    def off_by(self, radians: Array) -> Angles:
        """Where angles may be off by so much more, in every head alike; `[n, pairs]`."""
        return replace(self, off=self.off + radians)

    def wider(self, o: Array, more: Array) -> Angles:
        """Where elements of o may deviate by so much more, in any direction."""
        besides = sideways_deviation(o, more, self.pairs)
        besides = besides if self.besides is None else np.hypot(besides, self.besides)
        return replace(self, alike=np.full(self.pairs, np.inf), besides=besides)


def angles_of(
    positions: ArrayLike, frequencies: ArrayLike, p: Precision, *, exact: bool, equal: float
) -> Angles:
    """The angles of a rotation.

    Args:
        exact: angles have to be exact.
        equal: how many tokens have one vector; infinite where vectors deviate already, in any direction.
    """
    at, turns = np.asarray(positions, np.float64), np.abs(np.asarray(frequencies, np.float64))
    off = angle_error(at, turns)
    rounded = (p.u + p.half) / turns
    alike = np.maximum(np.maximum(1.0, STEADY * rounded), np.minimum(equal, 1.0 + IN_STEP * rounded))
    alike = alike if np.isfinite(equal) else np.full(len(turns), np.inf)
    return Angles(at, np.zeros_like(off) if exact else off, alike)


@dataclass(frozen=True)
class Turn:
    """The angle that uses most of what it is allowed, both in radians, and which it is.

    Attributes:
        got, allowed: of one token, or at the position furthest out, as the slope over all has it.
        pair: which.
    """

    got: float
    allowed: float
    pair: int


@dataclass(frozen=True)
class TurnLimit:
    """How far the angles of a tensor may be off.

    Attributes:
        angles: what is known of them.
        deviation: of each as rounding has it, `[n, pairs]`; infinite where nothing is turned.
    """

    angles: Angles
    deviation: Array

    @classmethod
    def of(cls, o: ArrayLike, deviation: Array, angles: Angles) -> TurnLimit:
        """Of a tensor or some rows of it, from the deviations of its elements."""
        shared = SHARED if np.isfinite(angles.alike).all() else 1.0
        made = sideways_deviation(np.asarray(o, np.float64), deviation, angles.pairs, shared=shared)
        made = made if angles.besides is None else np.hypot(made, angles.besides)
        return cls(replace(angles, besides=None), made)

    @classmethod
    def of_parts(cls, parts: Sequence[TurnLimit]) -> TurnLimit:
        """Of all tokens, from runs of them."""
        angles = [one.angles for one in parts]
        positions, off = (
            np.concatenate([getattr(one, name) for one in angles]) for name in ("positions", "off")
        )
        return cls(
            replace(angles[0], positions=positions, off=off), np.concatenate([one.deviation for one in parts])
        )

    def rows(self, part: Any) -> TurnLimit:
        """Of some tokens."""
        return TurnLimit(self.angles.rows(part), self.deviation[part])

    def worst(self, off: Array) -> Turn:
        """Of what angles `[n, pairs]` are off by, as `sideways` has it."""
        token = np.abs(off), ANGLE * self.deviation + self.angles.off
        slope, most = self._slopes(off)
        furthest = float(np.abs(self.angles.positions).max(initial=0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = slope * furthest, most * furthest
            got, allowed = (np.vstack(each) for each in zip(token, slopes, strict=True))
            shares = np.where(got > 0, got / allowed, 0.0)
        at = np.unravel_index(int(np.argmax(shares)), shares.shape)
        return Turn(float(got[at]), float(allowed[at]), int(at[1]))

    def _slopes(self, off: Array) -> tuple[Array, Array]:
        """What each pair's angle is off by for every position, and may be, `[pairs]`."""
        at = self.angles.positions[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = self.deviation**-2.0
            squares = np.sum(weight * at**2, axis=0)
            slope = np.abs(np.sum(weight * at * off, axis=0)) / squares
            chance = np.sqrt(np.minimum(self.angles.alike, len(off)) / squares)
            built = np.max(np.where(at == 0, 0.0, self.angles.off / np.abs(at)), axis=0, initial=0.0)
        still = squares == 0
        return np.where(still, 0.0, slope), np.where(still, np.inf, SLOPE * chance + built)


def sideways(x: ArrayLike, o: ArrayLike, pairs: int) -> Array:
    """By how many radians the pairs of x lie beside those of o, of all heads together, `[n, pairs]`.

    Args:
        x, o: of one shape, the token first, the features of heads last; flat rows as well.
    """
    yours, exact = _in_pairs(x, pairs), _in_pairs(o, pairs)
    moved = np.sum(exact[..., 0] * yours[..., 1] - exact[..., 1] * yours[..., 0], axis=1)
    size = np.sum(exact**2, axis=(1, 3))
    return np.asarray(moved / np.where(size > 0, size, 1.0))


def turns_alike(p: ArrayLike, o: ArrayLike, pairs: int) -> bool:
    """Whether p may be o with its pairs turned by other angles: all pairs are as long.

    Of other pairs, or of pairs that were made longer, what lies beside o's is no angle.
    """
    ours, exact = (np.linalg.norm(_in_pairs(one, pairs), axis=3) for one in (p, o))
    return bool(np.all(np.abs(ours - exact) <= AS_LONG * exact.max(initial=0.0)))


def sideways_deviation(o: Array, deviation: Array, pairs: int, *, shared: float = 1.0) -> Array:
    """The deviation of that, from each element's, `[n, pairs]`; infinite where there is nothing to turn.

    Args:
        shared: of its square the part that all heads have in common. The rest is each head's own where they
            hold different numbers, and is less by as many as there are.
    """
    exact = _in_pairs(o, pairs)
    exact = exact[..., 0] + 1j * exact[..., 1]
    reach = np.abs(exact)
    moment = reach * np.sqrt(np.sum(_in_pairs(deviation, pairs) ** 2, axis=3) / 2)
    square = np.sum(moment, axis=1) ** 2
    if shared < 1:
        square = shared * square + (1 - shared) * np.einsum("nhp,pgh,ngp->np", moment, _alike(exact), moment)
    size = np.sum(reach**2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(size > 0, np.sqrt(square) / size, np.inf))


def _alike(exact: Array) -> Array:
    """How alike heads `[n, heads, pairs]` are, however they are turned, `[pairs, heads, heads]`."""
    norms = np.linalg.norm(exact, axis=0)
    whole = (exact / np.where(norms > 0, norms, 1.0)).transpose(2, 1, 0)
    return np.asarray(np.abs(whole @ whole.conj().transpose(0, 2, 1)) ** 2)


def _in_pairs(x: ArrayLike, pairs: int) -> Array:
    """`[n, heads, pairs, 2]`"""
    array = np.asarray(x, np.float64)
    return array.reshape(len(array), -1, pairs, 2)
