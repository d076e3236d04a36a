"""Sums of products of large arrays, on one thread.

BLAS gives a sum of more than 10,000 products to all cores, and waits for the last of them: where another
program is at one, or a container has fewer than the machine, that took 15 ms instead of 0.02, and a
comparison of 400 tokens 40 s instead of 5. numpy only.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["inner", "norm_of"]

Array: TypeAlias = NDArray[Any]


def inner(a: Array, b: Array) -> float:
    """The sum of products of two real arrays of one shape, their elements in the same order."""
    return float(np.einsum("i,i->", a.ravel(), b.ravel()))


def norm_of(array: Array) -> float:
    """The root of the sum of squares of a real array."""
    flat = array.ravel(order="K")
    return math.sqrt(float(np.einsum("i,i->", flat, flat)))
