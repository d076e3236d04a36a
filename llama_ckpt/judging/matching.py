"""How near a prediction is to the tensor on trial, and whether the rest would pass.

Unlike the judge, which condemns at once what is not finite or of another shape, this holds such a tensor
against a bug that makes just that. numpy only.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.sums import inner, norm_of
from llama_ckpt.judging.turns import turns_alike
from llama_ckpt.judging.verdict import problems

__all__ = ["ROUNDED", "distance", "leaves_at_most", "passes", "would_explain"]

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

ROUNDED = 1e-6
"""Where equality is asked, a prediction nearer than float32's rounding explains the tensor."""

SAMPLE = 100_000
"""Of larger tensors so many elements tell which are the largest."""

PART = 1 << 16
"""So many elements are looked at together, which stay in a processor's cache."""


def distance(x: ArrayLike, p: ArrayLike, mask: Mask | None = None, *, spared: float = 0.0) -> float:
    """||x - p|| / ||p|| where `mask` is True, without the share of elements `spared` that are furthest off.

    Of integers the share that differs.

    Infinite for another shape, or where one is NaN or infinite and the other is not the same.
    """
    trial, predicted = np.asarray(x), np.asarray(p)
    if trial.shape != predicted.shape:
        return np.inf
    if predicted.dtype.kind in "iub":
        differ = trial != predicted
        counted = differ if mask is None else differ[np.broadcast_to(mask, differ.shape)]
        return float(np.mean(counted)) if counted.size else 0.0
    judged = None if mask is None else np.broadcast_to(mask, predicted.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        if predicted.size > SAMPLE and predicted.ndim > 1:
            total, norm = _norms_in_parts(trial, predicted, judged, spared)
        else:
            residual, wanted = _residual(trial, predicted, judged)
            total, norm = norm_of(_without_largest(residual, spared)), norm_of(wanted)
    if math.isfinite(total) and math.isfinite(norm):
        return total / norm if norm else total
    odd = ~(np.isfinite(trial) & np.isfinite(predicted))
    if judged is not None:
        odd &= judged
    if not odd.any() or not np.array_equal(trial[odd], predicted[odd], equal_nan=True):
        return np.inf
    return distance(np.where(odd, 0.0, trial), np.where(odd, 0.0, predicted), mask, spared=spared)


def _residual(x: Array, p: Array, judged: Mask | None) -> tuple[Array, Array]:
    """x - p and p in float64, 0 where not judged."""
    residual, wanted = x - p.astype(np.float64, copy=False), np.asarray(p, np.float64)
    if judged is None:
        return residual, wanted
    np.copyto(residual, 0.0, where=~judged)
    return residual, np.where(judged, wanted, 0.0)


def _norms_in_parts(x: Array, p: Array, judged: Mask | None, spared: float) -> tuple[float, float]:
    """The norms of x - p, without the share that is furthest off, and of p; some rows at a time."""
    most = _largest_kept(x, p, judged, spared) if int(spared * x.size) else None
    step = max(1, PART // max(1, x[0].size))
    total = norm = 0.0
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        residual, wanted = _residual(x[rows], p[rows], None if judged is None else judged[rows])
        if most is not None:
            np.copyto(residual, 0.0, where=~(np.abs(residual) <= most))
        total += inner(residual, residual)
        norm += inner(wanted, wanted)
    return math.sqrt(total), math.sqrt(norm)


def _largest_kept(x: Array, p: Array, judged: Mask | None, share: float) -> float:
    """How far off an element is of which so large a share is further off, as a sample tells."""
    few = np.unravel_index(_some(x.size), x.shape)
    off, _ = _residual(x[few], p[few], None if judged is None else judged[few])
    return float(np.quantile(np.abs(off), 1 - share))


@lru_cache(maxsize=4)
def _some(size: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, size, SAMPLE)


def _without_largest(residual: Array, share: float) -> Array:
    """Without the share of elements that are largest; of a large tensor as a sample of it tells."""
    n = int(share * residual.size)
    if not n:
        return residual
    sizes = np.abs(residual).ravel()
    if sizes.size <= SAMPLE:
        return np.partition(sizes, sizes.size - n)[:-n]
    most = np.quantile(sizes[_some(sizes.size)], 1 - share)
    return np.where(sizes <= most, sizes, 0.0)


def leaves_at_most(limit: Limit) -> float:
    """The relative error that rounding may leave of a tensor whose explanation is right."""
    if limit.exact:
        return 0.0 if limit.dtype == "integer" else ROUNDED
    return limit.err


def would_explain(p: ArrayLike, x: ArrayLike, o: ArrayLike, limit: Limit, mask: Mask | None = None) -> bool:
    """Whether x would pass with p, what a wrong program makes in the place of o.

    The angles by which pairs may be off are those of o's pairs: a program that turns other ones has the same,
    in other places, so that they are held against no pair of it.
    """
    turn, ours, exact = limit.turn, np.asarray(p), np.asarray(o)
    if turn is not None and (ours.shape != exact.shape or not turns_alike(ours, exact, turn.angles.pairs)):
        limit = replace(limit, turn=None)
    return passes(x, p, limit, mask)


def passes(x: ArrayLike, p: ArrayLike, limit: Limit, mask: Mask | None = None) -> bool:
    """Whether x would pass with p as the oracle's."""
    err = distance(x, p, mask)
    if err > leaves_at_most(limit):
        return False
    if limit.exact:  # asked of right values; a wrong program's own are rounded where it computes them
        return True
    if mask is not None and not np.any(mask):
        return False
    trial, predicted = np.asarray(x), np.asarray(p)
    finite = np.isfinite(trial) & np.isfinite(predicted)
    if not finite.all():
        trial, predicted = np.where(finite, trial, 0.0), np.where(finite, predicted, 0.0)
    return not problems(limit.uniform.measure(trial, predicted, mask), limit.uniform)
