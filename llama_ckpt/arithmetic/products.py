"""Products with weights as programs do them: the weight's values rounded when read, running sums rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.formats import UNROUNDED, rounded
from llama_ckpt.errors import UnsupportedModelError
from llama_ckpt.oracle.weights import FileMatrix

__all__ = ["rounded_matrix", "summed"]

Array: TypeAlias = NDArray[np.float64]


def rounded_matrix(w: Any, name: str) -> Any:
    """A weight `[out, in]` with its values rounded; itself where nothing is.

    Raises:
        UnsupportedModelError: a weight in a device's memory, of which only the product is to be had.
    """
    if name in UNROUNDED:
        return w
    if not isinstance(w, np.ndarray) and hasattr(w, "__array_ufunc__"):
        raise UnsupportedModelError("a weight to be rounded", got="one on a device", wanted="one in memory")
    if not isinstance(w, FileMatrix):
        return rounded(np.asarray(w, np.float64), name)
    return w.kept(name, lambda: rounded(np.asarray(w), name))


def summed(linear: Callable[[Array, Any], Array], x: Array, w: Any, sums: str) -> Array:
    """x wᵀ, exact, or "float16 every 16": a sum that is rounded after so many terms, in their order."""
    if sums == "float32":
        return linear(x, w)
    name, _, terms = sums.partition(" every ")
    matrix, step = np.asarray(w, np.float64), int(terms)
    total = np.zeros((*x.shape[:-1], len(matrix)))
    for start in range(0, x.shape[-1], step):
        part = slice(start, start + step)
        total = rounded(total + linear(x[..., part], matrix[:, part]), name)
    return total
