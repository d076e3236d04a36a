"""Float32 sums in every order that right programs take: x `[n, in]` times w `[out, in]` to `[n, out]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ORDERS", "Product", "from_packed"]

Array: TypeAlias = NDArray[Any]
Product: TypeAlias = Callable[[Array, Array], Array]


def one_by_one(x: Array, w: Array) -> Array:
    total = np.zeros((len(x), len(w)), np.float32)
    for i in range(x.shape[1]):
        total += x[:, i : i + 1] * w[:, i]
    return total


def chunked(x: Array, w: Array, size: int = 32) -> Array:
    parts = [x[:, i : i + size] @ w[:, i : i + size].T for i in range(0, x.shape[1], size)]
    return np.asarray(np.stack(parts).cumsum(axis=0, dtype=np.float32)[-1])


def pairwise(x: Array, w: Array) -> Array:
    if x.shape[1] <= 4:
        return one_by_one(x, w)
    half = x.shape[1] // 2
    return pairwise(x[:, :half], w[:, :half]) + pairwise(x[:, half:], w[:, half:])


def shuffled(x: Array, w: Array) -> Array:
    order = np.random.default_rng(0).permutation(x.shape[1])
    return np.asarray(x[:, order] @ w[:, order].T)


def in_float64(x: Array, w: Array) -> Array:
    return np.asarray(x.astype(np.float64) @ w.astype(np.float64).T, np.float32)


def without_blas(x: Array, w: Array) -> Array:
    return np.asarray(np.einsum("ni,oi->no", x, w, optimize=False))


def from_packed(x: Array, w: Array) -> Array:
    """Weights stay whole numbers: each block of 32 is summed first, then multiplied by its scale.

    The scale is what Q8_0 stores, so that weights which come from it are taken apart exactly.
    """
    blocks = w.reshape(len(w), -1, 32)
    scale = np.abs(blocks).max(axis=-1) / np.float32(127)
    whole = np.rint(blocks / np.where(scale > 0, scale, 1)[..., None])
    sums = np.einsum("nbi,obi->nob", x.reshape(len(x), -1, 32), whole)
    return np.asarray((sums * scale).sum(axis=-1))


ORDERS: tuple[tuple[str, str, Product], ...] = (
    ("sum-blas", "products summed by the BLAS", lambda x, w: np.asarray(x @ w.T)),
    ("sum-one-by-one", "products summed from first to last", one_by_one),
    ("sum-last-first", "products summed from last to first", lambda x, w: one_by_one(x[:, ::-1], w[:, ::-1])),
    ("sum-chunked", "products summed in runs of 32, then those", chunked),
    ("sum-pairwise", "products summed as a tree", pairwise),
    ("sum-shuffled", "products summed in a random order", shuffled),
    ("sum-without-blas", "products summed by numpy's own loops", without_blas),
    ("sum-float64", "products summed in float64, the sum rounded to float32", in_float64),
)
