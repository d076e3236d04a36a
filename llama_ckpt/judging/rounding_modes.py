"""Errors that point one way on their way through a block: what all elements of a row are off by together.

`rounding_steps` adds up errors as chance does, element by element. After a product with weights that have
a mean, all outputs are off by nearly the same, and after a second one that is far more than chance would
have left. So beside each deviation goes a *mode*: one signed pattern a row, of which a program's error has
some multiple, as likely more as less. And of a row that went through a product its errors' sums are kept,
plain and along the row, which a gain and a bias are made of. numpy only.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.norm_rounding import norm_shared
from llama_ckpt.judging.rounding_steps import MODE, STEEP, Precision, reached, silu
from llama_ckpt.judging.spread import RowSums

__all__ = [
    "aligned_sums",
    "column_means",
    "gated_mode",
    "norm_mode",
    "product_mode",
    "row_sums",
    "sums_of",
    "together",
]

Array: TypeAlias = NDArray[np.float64]


def together(first: Array | None, second: Array | None) -> Array | None:
    """Two modes in one: their sizes add up as those of chance do.

    The signs are those of which a row has more in sum: weights with a mean make most of these.
    """
    if first is None or second is None:
        return second if first is None else first
    sums = (np.abs(mode.reshape(len(mode), -1).sum(axis=1)) for mode in (first, second))
    larger = np.greater_equal(*sums).reshape(-1, *[1] * (first.ndim - 1))
    return np.asarray(np.copysign(np.hypot(first, second), np.where(larger, first, second)))


def product_mode(w: Any, carried: Array, rows: int) -> Array:
    """What all elements of a row of y = x w^T are off by together, `[rows, out]`: weights have a mean.

    Args:
        carried: the deviation of x, each element's apart.
    """
    means = column_means(w)
    alike = np.sqrt((carried * carried) @ (means * means))[:, None]
    return np.asarray(np.broadcast_to(alike, (rows, w.shape[0])))


def norm_mode(
    x: Array, weight: Array, y: Array, eps: float, p: Precision, mode: Array | None = None
) -> Array | None:
    """What the elements of an RMS norm's row are off by together: its root, and x's own mode."""
    root = norm_shared(x, eps, p) * y
    if mode is None:
        return np.asarray(root)
    scale = 1 / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps)
    return together(root, mode * scale * weight)


def gated_mode(gate: Array, up: Array, gate_mode: Array | None, up_mode: Array | None) -> Array | None:
    """What the elements of a row of silu(gate) * up are off by together.

    Gates and ups come of one norm: where both are off, they are so together.
    """
    if gate_mode is None and up_mode is None:
        return None
    moved = None if gate_mode is None else reached(gate, gate_mode, MODE)
    second = None if up_mode is None else silu(gate) * up_mode
    if moved is None or second is None:
        return second if moved is None else moved * up
    assert up_mode is not None
    both = STEEP * moved * up_mode  # of what is next to nothing, and off by far more
    ways = moved * up + second + both, moved * up - second - both
    norms = (np.linalg.norm(way.reshape(len(way), -1), axis=1) for way in ways)
    larger = np.greater_equal(*norms).reshape(-1, *[1] * (up.ndim - 1))
    return np.asarray(np.where(larger, *ways))


def column_means(w: Any) -> Array:
    """The mean of the rows of a weight, `[in]`; one in another memory has a method for it."""
    if hasattr(w, "column_means"):
        return np.asarray(w.column_means())

    def make() -> Array:
        return np.asarray(np.asarray(w, np.float64).mean(axis=0))

    means: Array = w.always("column means", make) if hasattr(w, "always") else make()
    return means


def sums_of(y: Array, off: Array) -> RowSums:
    """What the errors of a row add up to where each element errs apart, or, a mode, all together do not."""
    exact, apart = np.reshape(y, (len(y), -1)), np.reshape(off, (len(y), -1))
    return RowSums(np.linalg.norm(apart * exact, axis=1), np.linalg.norm(apart, axis=1))


def row_sums(y: Array, w: Any, carried: Array) -> RowSums:
    """What a deviation of x, each element's apart, adds up to in the rows of y = x w^T."""
    exact = np.reshape(y, (len(y), -1))
    towards = np.matmul(exact, w)  # where an error of x would have to point for y to be off along itself
    through = w.shape[0] * column_means(w)
    return RowSums(np.linalg.norm(carried * towards, axis=1), np.linalg.norm(carried * through, axis=1))


def aligned_sums(y: Array, own: Array, whole: Array) -> RowSums:
    """The same where what came with x went through several products, and may point wherever y does.

    Args:
        y: the tensor, its token first. own: the deviation of its own rounding. whole: with what came.
    """
    exact, apart, all_of_it = (np.reshape(array, (len(y), -1)) for array in (y, own, whole))
    came = np.sqrt(np.sum(np.maximum(all_of_it**2 - apart**2, 0.0), axis=1))
    along = came * np.linalg.norm(exact, axis=1)
    return sums_of(y, own).and_of(RowSums(along, came * exact.shape[1] ** 0.5))
