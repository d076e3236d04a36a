"""Checkpoint 1: RMSNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import Patch, PatchedOracle
from llama_ckpt.judging.to_precision import to_float16

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]


def by(root: Callable[[Array, float], Array]) -> Patch:
    """A norm that divides by `root(x, eps)` `[n, 1]`."""

    def rms_norm(right: PatchedOracle, x: Any, weight: Any, *, eps: float, tap: Any = None) -> Array:
        rows = right.float64(x)
        normed: Array = rows / root(rows, eps)
        return np.asarray(normed * right.float64(weight))

    return rms_norm


def weighed(change: Callable[[Array], Array]) -> Patch:
    """A right norm with another weight."""

    def rms_norm(right: PatchedOracle, x: Any, weight: Any, *, eps: float, tap: Any = None) -> Array:
        normed: Array = right.rms_norm(x, change(right.float64(weight)), eps=eps)
        return normed

    return rms_norm


def as_x_transformers(right: PatchedOracle, x: Any, weight: Any, *, eps: float, tap: Any = None) -> Array:
    rows = right.float64(x)
    return np.asarray(rows / np.sqrt(mean_square(rows)) * (1 + right.float64(weight)))


def mean_subtracted(right: PatchedOracle, x: Any, weight: Any, *, eps: float, tap: Any = None) -> Array:
    rows = right.float64(x)
    normed: Array = right.rms_norm(rows - rows.mean(axis=-1, keepdims=True), weight, eps=eps)
    return normed


def weight_first(right: PatchedOracle, x: Any, weight: Any, *, eps: float, tap: Any = None) -> Array:
    rows = right.float64(x) * right.float64(weight)
    normed: Array = right.rms_norm(rows, np.ones_like(rows[0]), eps=eps)
    return normed


def mean_square(x: Array) -> Array:
    """`[n, 1]`"""
    found: Array = np.mean(x * x, axis=-1, keepdims=True)
    return found


def half_mean_square(x: Array) -> Array:
    """Squares rounded to float16, and so is their sum: infinite above 65,504."""
    squares = to_float16(np.square(to_float16(x)))
    return np.asarray(to_float16(squares.sum(axis=-1, keepdims=True)) / x.shape[-1])


def other_eps(eps: float) -> float:
    """Llama 1 and Mistral have 1e-6 and 1e-5; whichever this model has not."""
    return 1e-6 if eps > 3e-6 else 1e-5


def over_all_tokens(x: Array, eps: float) -> Array:
    return np.full((len(x), 1), np.sqrt(np.mean(x * x) + eps), dtype=x.dtype)


def bug(name: str, sentence: str, patch: Patch, *, sees_later: bool = False) -> Bug:
    return Bug(f"norm-{name}", sentence, "1", "rms_norm", patch, sees_later)


BUGS = (
    bug(
        "eps-other",
        "the norm's epsilon is 1e-6 for 1e-5, or the reverse",
        by(lambda x, eps: np.sqrt(mean_square(x) + other_eps(eps))),
    ),
    bug("eps-missing", "the norm has no epsilon", by(lambda x, eps: np.sqrt(mean_square(x)))),
    bug(
        "eps-outside",
        "the norm's epsilon is added outside the root",
        by(lambda x, eps: np.sqrt(mean_square(x)) + eps),
    ),
    bug(
        "eps-to-sum",
        "the norm's epsilon is added to the sum of squares, before it is divided by the width",
        by(lambda x, eps: np.sqrt(mean_square(x) + eps / x.shape[-1])),
    ),
    bug("mean-subtracted", "the norm subtracts the mean, as LayerNorm does", mean_subtracted),
    bug("weight-missing", "the norm's weight is forgotten", weighed(np.ones_like)),
    bug("weight-plus-one", "the norm multiplies by 1 + weight, as Gemma does", weighed(lambda w: 1 + w)),
    bug(
        "weight-plus-one-without-eps",
        "the norm has no epsilon and multiplies by 1 + weight, as x-transformers does",
        as_x_transformers,
    ),
    bug("weight-shifted", "the norm's weight is shifted by one feature", weighed(lambda w: np.roll(w, 1))),
    bug("weight-first", "the norm's weight is multiplied in before normalizing", weight_first),
    bug(
        "sum-for-mean",
        "the norm divides by the root of the sum of squares, not of their mean",
        by(lambda x, eps: np.sqrt(mean_square(x) * x.shape[-1] + eps)),
    ),
    bug(
        "width-less-one",
        "the norm's mean divides by width - 1, as an unbiased variance does",
        by(lambda x, eps: np.sqrt(mean_square(x) * (x.shape[-1] / (x.shape[-1] - 1)) + eps)),
    ),
    bug(
        "root-missing",
        "the norm divides by the mean square, not by its root",
        by(lambda x, eps: mean_square(x) + eps),
    ),
    bug(
        "over-all-tokens",
        "the norm's mean runs over all tokens, not over one token's features",
        by(over_all_tokens),
        sees_later=True,
    ),
    bug(
        "mean-of-sizes",
        "the norm divides by the mean of |x|, not by the root mean square",
        by(lambda x, eps: np.mean(np.abs(x), axis=-1, keepdims=True) + eps),
    ),
    bug(
        "squares-float16",
        "the norm squares and sums in float16",
        by(lambda x, eps: np.sqrt(half_mean_square(x) + eps)),
    ),
)
