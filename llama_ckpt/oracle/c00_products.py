"""What all of the oracle's functions are made of, in numpy float64. Imports numpy and nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__: list[str] = []

Array: TypeAlias = NDArray[np.float64]
Tap: TypeAlias = Callable[[str, Any], object]
"""Gets arrays; of a choice integers, of all else float64."""


def _float64(x: ArrayLike) -> Array:
    return np.asarray(x, dtype=np.float64)


def _ignore(point: str, array: Any) -> None:
    """Stand in for a tap that nobody asked for."""


def _linear(x: Array, w: Any) -> Array:
    # A weight may be anything that takes part in numpy's products, such as a matrix in another memory.
    matrix = w if hasattr(w, "__array_ufunc__") else _float64(w)
    y: Array = np.matmul(x, matrix.T)  # [n, in] x [out, in]^T -> [n, out], in float64 as x is
    return y


def _biased(x: Array, bias: ArrayLike | None) -> Array:
    return x if bias is None else x + _float64(bias)


def _normalized_exp(x: Array) -> Array:
    """exp(x) / sum(exp(x)) over the last axis; the maximum is taken out first, lest exp overflow."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return _float64(e / np.sum(e, axis=-1, keepdims=True))


def _sigmoid(a: Array) -> Array:
    e = np.exp(-np.abs(a))  # never above 1: exp(-a) itself would overflow for a << 0
    return np.where(a >= 0, 1.0, e) / (1.0 + e)
