"""Products with weights as programs do them: the weight's values rounded when read, running sums rounded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.formats import UNROUNDED, rounded
from llama_ckpt.arithmetic.integers import INTEGERS, integer_rows
from llama_ckpt.arithmetic.rests import TwoParts, two_parts
from llama_ckpt.arithmetic.tensor_cores import FP8_SUMS, fp8_products
from llama_ckpt.errors import UnsupportedModelError
from llama_ckpt.oracle.weights import FileMatrix

__all__ = [
    *("HALF_PRODUCTS", "HALF_SCALES", "TENSOR_CORES"),
    *("half_products", "matrix_in_parts", "parsed_sums", "rounded_matrix", "summed", "undecided"),
]

Array: TypeAlias = NDArray[np.float64]

HALF_SCALES: Final = "float16 scales"
"""A reading of weights: the scales and minima of their groups are rounded, not their values."""


HALF_PRODUCTS: Final = "float16 products of scales"
"""Another: a scale times that of the activations, and a minimum times their sum, are rounded to float16."""


def half_products(x: Array, name: str, w: Any) -> Array | None:
    """x wᵀ with HALF_PRODUCTS, x rounded to integers as `name` says; None for a weight without parts.

    Two scales are multiplied in float16 (`__hmul2`), then with the sum of the products of integers.
    """
    parts = w.parts if isinstance(w, FileMatrix) else None
    if parts is None or parts.minimum is None or name not in INTEGERS or parts.group != INTEGERS[name].block:
        return None
    rows = integer_rows(x, name)
    if rows.sums is None:
        return None
    out, groups = parts.scale.shape
    integers = parts.meaning[parts.integers].reshape(out, groups, -1)
    y = np.empty((int(np.prod(x.shape[:-1])), out))
    mine = rows.integers.reshape(len(y), groups, -1), rows.kept.reshape(len(y), groups)
    for n, (ours, scale, sums) in enumerate(zip(*mine, rows.sums.reshape(len(y), groups), strict=True)):
        dots = np.einsum("ogk,gk->og", integers, ours)
        y[n] = np.sum(_half(parts.scale * scale) * dots + _half(parts.minimum * sums), axis=1)
    return y.reshape(*x.shape[:-1], out)


def _half(x: Array) -> Array:
    return np.asarray(x, np.float64).astype(np.float16).astype(np.float64)


def rounded_matrix(w: Any, name: str) -> Any:
    """A weight `[out, in]` with its values rounded; itself where nothing is.

    Raises:
        UnsupportedModelError: a weight in a device's memory, of which only the product is to be had.
    """
    if name in UNROUNDED or name == HALF_PRODUCTS:
        return w
    if name == HALF_SCALES:
        return w.half_scaled() if isinstance(w, FileMatrix) else w
    return _made_of(w, name, lambda values: rounded(values, name))


def matrix_in_parts(w: Any, name: str) -> TwoParts:
    """A weight `[out, in]` as float16 and an 8-bit rest (`rests`).

    Raises:
        UnsupportedModelError: a weight in a device's memory.
    """
    made: TwoParts = _made_of(w, f"{name}, parted", lambda values: two_parts(values, name))
    return made


def undecided(w: Any, name: str, fallen: Callable[[Array], Array | None]) -> tuple[NDArray[np.intp], Array]:
    """The rows of a weight `[out, in]` with values that may be rounded to either neighbour, and by how much.

    Args:
        fallen: by how much each value may be, or None.

    Raises:
        UnsupportedModelError: a weight in a device's memory.
    """

    def made(values: Array) -> tuple[NDArray[np.intp], Array]:
        falls = fallen(values)
        if falls is None:
            return np.empty(0, np.intp), values[:0]
        rows = np.flatnonzero(falls.any(axis=1))
        return rows, falls[rows]

    found: tuple[NDArray[np.intp], Array] = _made_of(w, f"{name}, undecided", made)
    return found


def _made_of(w: Any, what: str, make: Callable[[Array], Any]) -> Any:
    """Something made of a weight's values, which a matrix of a file keeps."""
    if not isinstance(w, np.ndarray) and hasattr(w, "__array_ufunc__"):
        raise UnsupportedModelError("a weight to be rounded", got="one on a device", wanted="one in memory")
    if not isinstance(w, FileMatrix):
        return make(np.asarray(w, np.float64))
    return w.kept(what, lambda: make(np.asarray(w)))


TENSOR_CORES: Final = "tensor cores"
"""Sums in float32 as tensor cores make them: cut off with each few products, always towards zero."""


def summed(linear: Callable[[Array, Any], Array], x: Array, w: Any, sums: str) -> Array:
    """x wᵀ, exact with "float32", or in a running sum that is rounded after so many terms (`parsed_sums`).

    Sums of FP8_SUMS want rows and a weight that were rounded to fp8.
    """
    if sums in ("float32", TENSOR_CORES):
        return linear(x, w)
    if sums in FP8_SUMS:
        return fp8_products(x, np.asarray(w, np.float64), sums)
    name, every, strands, parts = parsed_sums(sums)
    matrix = np.asarray(w, np.float64)
    if strands:
        return _in_strands(x, matrix, name, strands)
    length = -(-x.shape[-1] // (parts * every)) * every  # each part is whole steps
    total: Array | None = None
    for first in range(0, x.shape[-1], length):
        part = np.zeros((*x.shape[:-1], len(matrix)))
        for start in range(first, min(first + length, x.shape[-1]), every):
            terms = slice(start, start + every)
            part = rounded(part + linear(x[..., terms], matrix[:, terms]), name)
        total = part if total is None else rounded(total + part, name)
    assert total is not None
    return total


def _in_strands(x: Array, matrix: Array, name: str, most: int) -> Array:
    """Running sums side by side, term i in strand i modulo their number, and these added exactly at the end.

    Of `most` strands there are as few, in steps of 64, as keep all sums as short.
    """
    width = x.shape[-1]
    rounds = -(-width // most)
    strands = next(n for n in range(64, most + 64, 64) if -(-width // n) == rounds)
    total = np.zeros((*x.shape[:-1], len(matrix), strands))
    for start in range(0, width, strands):
        terms = x[..., None, start : start + strands] * matrix[:, start : start + strands]
        total[..., : terms.shape[-1]] = rounded(total[..., : terms.shape[-1]] + terms, name)
    return np.asarray(total.sum(axis=-1))


_NUMBER = "([1-9][0-9]{0,8})"
_SUMS = rf"(\S+)(?: every {_NUMBER}(?: in {_NUMBER} parts)?| in {_NUMBER} strands)"


def parsed_sums(sums: str) -> tuple[str, int, int, int]:
    """The parts of "float16 every 16", "float16 every 16 in 4 parts" and "float16 in 512 strands".

    Returns:
        The rounding, the terms between two of them, the strands (0: none), the parts.

    Raises:
        ValueError: something else.
    """
    found = re.fullmatch(_SUMS, sums)
    if found is None:
        raise ValueError(sums)
    name, every, parts, strands = found.groups()
    return name, int(every or 1), int(strands or 0), int(parts or 1)
