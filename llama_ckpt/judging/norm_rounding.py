"""The rounding error of an RMS norm, and where whole rows of it, or many rows, err one way.

the sum of squares     of a port's loop is made one after the other: where one feature dwarfs the rest and
                       comes first, each step is as coarse as the whole sum, and what is less than a
                       rounding of it is lost
the root, bfloat16     is rounded after a mean that was rounded: rows whose means round alike err alike
x times the root,      a root next to a power of two sends every number of half precision back to itself:
float16                the row is too small or too large by what the root is beside it, 2^-12 at most
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.rounding_steps import SWALLOWED, Precision, sum_one_by_one, to_half

__all__ = ["CHANCE", "norm_apart", "norm_deviation", "norm_lost", "norm_shared", "roots_alike"]

Array: TypeAlias = NDArray[np.float64]

NORM_ROUNDINGS = 2.0
"""The division and the product with the weight, also in half precision; and as many of the root."""

CHANCE = 3.0
"""Standard deviations of a mean: what is further off points one way."""


def norm_lost(x: Array, p: Precision) -> Array:
    """The share of a row's root that is lost with the squares below a rounding of the largest, `[n, 1]`."""
    squares = x * x
    little = np.where(squares < p.u * squares.max(axis=1, keepdims=True), squares, 0.0)
    sums = squares.sum(axis=1, keepdims=True)
    return np.asarray(0.5 * SWALLOWED * little.sum(axis=1, keepdims=True) / np.where(sums > 0, sums, 1.0))


def _root(x: Array, p: Precision) -> Array:
    """What a root is off by, as a share, `[n, 1]`: its sum of squares, its own rounding."""
    squares = x * x
    sums = squares.sum(axis=1, keepdims=True)
    largest = squares.max(axis=1, keepdims=True) / np.where(sums > 0, sums, 1.0)
    return np.asarray(np.hypot(p.u * sum_one_by_one(x.shape[1], largest), 2 * norm_lost(x, p)))


def norm_shared(x: Array, eps: float, p: Precision) -> Array:
    """What a row of an RMS norm of x `[n, width]` has in common, as a share, `[n, 1]`."""
    shared = p.u + 0.5 * _root(x, p) + p.root
    return np.hypot(shared, _one_way(x, eps, p)) if p.half and not p.root else shared


def _one_way(x: Array, eps: float, p: Precision) -> Array:
    """What x times its root, rounded to float16, is off by all along the row; 0 where it is off by chance."""
    exact = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps)
    off = to_half(exact, p) - exact
    energy = np.sum(exact * exact, axis=1, keepdims=True)
    along = np.sum(off * exact, axis=1, keepdims=True)
    chance = CHANCE * np.sqrt(np.sum((off * exact) ** 2, axis=1, keepdims=True))
    return np.asarray(
        np.where(np.abs(along) > chance, np.abs(along) / np.where(energy > 0, energy, 1.0), 0.0)
    )


def norm_apart(weight: Array, y: Array, p: Precision) -> Array:
    """Of an RMS norm what each element errs by itself, beside `norm_shared`."""
    share = NORM_ROUNDINGS * (p.u + p.half)
    return np.asarray(share * np.abs(y) + p.least * (1 + np.abs(weight)))


def norm_deviation(
    x: Array, weight: Array, y: Array, eps: float, p: Precision, carried: Array | None = None
) -> Array:
    """Of an RMS norm `[n, width]`."""
    own = norm_apart(weight, y, p) + (p.u * NORM_ROUNDINGS + _root(x, p) + p.root) * np.abs(y)
    if carried is None:
        return np.asarray(own)
    scale = 1 / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps)
    through = carried * scale * np.abs(weight)
    # The root reads them all: a row's scale moves by the part of the deviation that lies along x.
    along = np.sqrt(np.sum((x * carried) ** 2, axis=1, keepdims=True)) * scale**2 / x.shape[1]
    return np.asarray(np.sqrt(own**2 + through**2 + (along * y) ** 2))


def roots_alike(x: Array, y: Array, eps: float, p: Precision) -> tuple[float, float]:
    """What the roots of rows err by together in bfloat16, along y and in sum, squares.

    Beside what each root comes to alone. Rows whose mean squares round alike have one root; where these are
    few numbers that lie together, their roots may all be rounded one way; and an epsilon of about the
    distance of two numbers is more or less for all rows once it is added.
    """
    if not p.root or len(x) == 1:
        return 0.0, 0.0
    squares = np.mean(x * x, axis=1)
    means, added = squares + eps, to_half(to_half(squares, p) + eps, p)
    _, group = np.unique(added, return_inverse=True)
    roots = [np.sqrt(each) for each in (means, to_half(means, p), added)]
    roots += [to_half(each, p) for each in roots]  # as torch has it, but where its vectors are full
    one_way = [to_half(1 / root, p) * np.sqrt(means) - 1 for root in roots]
    found = []
    for rows in (np.sum(y * y, axis=1), y.sum(axis=1)):
        errors = p.root * rows
        by_chance = np.sum(np.bincount(group, errors) ** 2)
        found.append(float(max(by_chance, *(np.sum(off * rows) ** 2 for off in one_way)) - errors @ errors))
    return max(found[0], 0.0), max(found[1], 0.0)
