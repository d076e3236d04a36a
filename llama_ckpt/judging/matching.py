"""How near a prediction is to the tensor on trial, and whether the rest would pass.

Unlike the judge, which condemns at once what is not finite or of another shape, this holds such a tensor
against a bug that makes just that. numpy only.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.verdict import judge

__all__ = ["ROUNDED", "distance", "leaves_at_most", "passes"]

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

ROUNDED = 1e-6
"""Where equality is asked, a prediction nearer than float32's rounding explains the tensor."""

SAMPLE = 100_000
"""Of larger tensors so many elements tell which are the largest."""


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
        judged = differ if mask is None else differ[np.broadcast_to(mask, differ.shape)]
        return float(np.mean(judged)) if judged.size else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        residual, wanted = trial - predicted.astype(np.float64, copy=False), predicted
        if mask is not None:
            judged = np.broadcast_to(mask, predicted.shape)
            residual, wanted = np.where(judged, residual, 0.0), np.where(judged, predicted, 0.0)
        total, norm = _norm(_without_largest(residual, spared)), _norm(wanted)
    if np.isfinite(total) and np.isfinite(norm):
        return total / norm if norm else total
    odd = ~(np.isfinite(trial) & np.isfinite(predicted))
    if mask is not None:
        odd &= judged
    if not odd.any() or not np.array_equal(trial[odd], predicted[odd], equal_nan=True):
        return np.inf
    return distance(np.where(odd, 0.0, trial), np.where(odd, 0.0, predicted), mask, spared=spared)


def _norm(array: Array) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float64).ravel()))


def _without_largest(residual: Array, share: float) -> Array:
    """Without the share of elements that are largest; of a large tensor as a sample of it tells."""
    n = int(share * residual.size)
    if not n:
        return residual
    sizes = np.abs(residual).ravel()
    if sizes.size <= SAMPLE:
        return np.partition(sizes, sizes.size - n)[:-n]
    few = sizes[np.random.default_rng(0).integers(0, sizes.size, SAMPLE)]
    most = np.quantile(few, 1 - share)
    return np.where(sizes <= most, sizes, 0.0)


def leaves_at_most(limit: Limit) -> float:
    """The relative error that rounding may leave of a tensor whose explanation is right."""
    if limit.exact:
        return 0.0 if limit.dtype == "integer" else ROUNDED
    return limit.err


def passes(x: ArrayLike, p: ArrayLike, limit: Limit, mask: Mask | None = None) -> bool:
    """Whether x would pass with p as the oracle's."""
    err = distance(x, p, mask)
    if err > leaves_at_most(limit):
        return False
    if limit.exact:  # asked of right values; a wrong program's own are rounded where it computes them
        return True
    finite = np.isfinite(p) & np.isfinite(x)
    trial, predicted = np.where(finite, x, 0.0), np.where(finite, p, 0.0)
    return judge("", trial, predicted, limit=limit.uniform, mask=mask, dtype=limit.dtype).verdict == "pass"
