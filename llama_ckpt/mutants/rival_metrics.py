"""The metrics by which other tools pass or fail a tensor, with the limits that they have or recommend.

They are run on the catalogue beside ours, so that the documentation can say what each of them misses.
x is the tensor on trial, r the reference. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RIVALS", "Rival"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Rival:
    """A metric of another tool.

    Attributes:
        name: metric and limit.
        used_by: whose it is.
        formula: what it computes, for the documentation.
        within: whether x passes against r, two flat float64 arrays of one length.
    """

    name: str
    used_by: str
    formula: str
    within: Callable[[Array, Array], bool]

    def passes(self, x: ArrayLike, r: ArrayLike) -> bool:
        """Whether x passes against r; a tensor of another shape never does."""
        trial, reference = np.asarray(x, np.float64), np.asarray(r, np.float64)
        if trial.shape != reference.shape:
            return False
        with np.errstate(all="ignore"):
            return bool(self.within(trial.ravel(), reference.ravel()))


def cosine(x: Array, r: Array) -> float:
    """<x, r> / (|x| |r|)"""
    return float(x @ r / (np.linalg.norm(x) * np.linalg.norm(r)))


def pcc(x: Array, r: Array) -> float:
    """The correlation of x and r, their NaN and infinities set to 0; two constants correlate if equal."""
    x, r = (np.where(np.isfinite(a), a, 0.0) for a in (x, r))
    if np.ptp(x) == 0 or np.ptp(r) == 0:
        return float(np.array_equal(x, r))
    return cosine(x - x.mean(), r - r.mean())


def nmse(x: Array, r: Array) -> float:
    """|x - r|^2 / |r|^2"""
    return float(np.sum((x - r) ** 2) / np.sum(r**2))


def nearly_equal(x: Array, r: Array) -> bool:
    """Every element within 1e-5, absolutely or relatively."""
    difference = np.abs(x - r)
    return bool(np.all((difference <= 1e-5) | (difference <= 1e-5 * np.abs(r))))


def same_mean(x: Array, r: Array) -> bool:
    """The means differ by no more than a thousandth of the mean size."""
    return bool(abs(x.mean() - r.mean()) <= 1e-3 * np.abs(r).mean())


RIVALS: tuple[Rival, ...] = (
    Rival("cosine ≥ 0.99", "msprobe", "x·r / (‖x‖‖r‖)", lambda x, r: cosine(x, r) >= 0.99),
    Rival(
        "PCC ≥ 0.99",
        "TTNN's comp_pcc",
        "correlation of x and r, NaN set to 0",
        lambda x, r: pcc(x, r) >= 0.99,
    ),
    Rival(
        "PCC ≥ 0.9999",
        "TTNN's assert_with_pcc",
        "correlation of x and r, NaN set to 0",
        lambda x, r: pcc(x, r) >= 0.9999,
    ),
    Rival(
        "NMSE ≤ 5e-4",
        "llama.cpp's test-backend-ops, for products",
        "‖x − r‖² / ‖r‖²",
        lambda x, r: nmse(x, r) <= 5e-4,
    ),
    Rival("elementwise 1e-5", "Polygraphy", "each |x − r| ≤ 1e-5 or ≤ 1e-5 |r|", nearly_equal),
    Rival("means, 1e-3", "printed sums and means", "|mean x − mean r| ≤ 1e-3 mean|r|", same_mean),
)
