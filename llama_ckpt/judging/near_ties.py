"""Near ties of a mixture's router: where two right programs may choose different experts.

Two scores closer than rounding puts them are a coin flip, and after it the token goes through other
matrices. Which choices are as right as the exact one is asked of the scores: one that rounding cannot have
made is wrong, however near another tie lies. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AFTER_CHOICE",
    "UNKNOWN",
    "Choosing",
    "Rows",
    "as_right",
    "followed",
    "is_choice",
    "near",
    "seen_by",
]

Array: TypeAlias = NDArray[Any]
Rows: TypeAlias = NDArray[np.bool_]

AFTER_CHOICE = frozenset({"ffn_chosen", "ffn_weights", "ffn_expert_out", "ffn_out", "out"})
"""The points of a block that hang on the choice."""


@dataclass(frozen=True, eq=False)
class Choosing:
    """What is known of a block's choice beside the scores.

    Attributes:
        theirs: `[n, n_used]`, the experts that a program chose; None where it did not record that.
        off: what a score may be off by, `[n]`; None: what the block's own steps leave.
    """

    theirs: Array | None = None
    off: Array | None = None


UNKNOWN = Choosing()


def near(router: NDArray[np.float64], n_used: int, off: Any) -> Rows:
    """The tokens whose choice, or its order, may fall another way, `[n]`.

    Args:
        router: exact scores `[n, n_experts]`.
        n_used: how many are chosen.
        off: what a score may be off by, `[n]` or one number.
    """
    ranked = -np.sort(-router, axis=1)[:, : n_used + 1]
    if ranked.shape[1] < 2:
        return np.zeros(len(router), bool)
    return np.asarray(np.min(ranked[:, :-1] - ranked[:, 1:], axis=1) <= 2 * off)


def is_choice(chosen: Array, n_experts: int) -> Rows:
    """The tokens of `chosen [n, n_used]` that have different experts, which there are, `[n]`."""
    with np.errstate(invalid="ignore"):
        there = (np.rint(chosen) == chosen) & (chosen >= 0) & (chosen < n_experts)
    ordered = np.sort(np.where(there, chosen, -1), axis=1)
    return np.asarray(there.all(axis=1) & (np.diff(ordered, axis=1) != 0).all(axis=1))


def as_right(theirs: Array, router: NDArray[np.float64], off: Any) -> Rows:
    """The tokens whose choice a right program may have made, `[n]`.

    Scores that are off by no more than `off` put in place r an expert whose score lies no further than
    twice that from the r-th largest.

    Args:
        theirs: the experts that were chosen, `[n, n_used]`; router, off: as of `near`.
    """
    possible = is_choice(theirs, router.shape[1])
    chosen = np.where(possible[:, None], theirs, 0).astype(np.int64)
    scores = np.take_along_axis(router, chosen, axis=1)
    ranked = -np.sort(-router, axis=1)[:, : chosen.shape[1]]
    most = 2 * np.broadcast_to(np.asarray(off, np.float64), len(router))[:, None]
    return np.asarray(possible & (np.abs(scores - ranked) <= most).all(axis=1))


def followed(chosen: Array, theirs: Array, router: NDArray[np.float64], off: Any) -> Array:
    """A choice `[n, n_used]`, with theirs in its place where that is as right."""
    right = as_right(theirs, router, off)[:, None]
    return np.where(right, np.where(right, theirs, 0), chosen).astype(np.int64)


def seen_by(rows: Rows, positions: Any) -> Rows:
    """The tokens that attention lets read one of these, `[n]`."""
    at = np.asarray(positions)
    return at >= at[rows].min() if rows.any() else rows
