"""Rounding to fewer bits than numpy knows of, to nearest and ties to even; results keep their dtype."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["cut_to_bfloat16", "to_bfloat16", "to_float16", "to_tf32"]

Array: TypeAlias = NDArray[Any]


def to_float16(x: Array) -> Array:
    """11 bits and a narrow range: beyond 65,504 it is infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(x.dtype)


def to_bfloat16(x: Array) -> Array:
    """8 bits, float32's range."""
    return _without_low_bits(x, 16)


def cut_to_bfloat16(x: Array) -> Array:
    """The upper half of a float32, as programs take it that do not round."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(x.dtype)


def to_tf32(x: Array) -> Array:
    """11 bits, float32's range: what tensor cores take of a float32 where TF32 is on."""
    return _without_low_bits(x, 13)


def _without_low_bits(x: Array, n: int) -> Array:
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    tie = (bits >> np.uint32(n)) & np.uint32(1)
    rounded = bits + np.uint32((1 << (n - 1)) - 1) + tie
    return (rounded & np.uint32((0xFFFFFFFF << n) & 0xFFFFFFFF)).view(np.float32).astype(x.dtype)
