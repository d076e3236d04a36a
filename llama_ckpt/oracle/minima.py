"""The minimum of a block of a quantized weight: what a value is where its integer is 0.

ggml multiplies it by the sum of a block of activations, which it keeps beside them and rounds by itself. The
types without a minimum of their own have one where a program counts their integers from 0 up: -8 · d in Q4_0,
-16 · d in Q5_0.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["block_minima"]

_BLOCKS: Final[Mapping[str, tuple[int, int, float]]] = MappingProxyType(
    {"Q4_0": (18, 0, -8.0), "Q4_1": (20, 2, 1.0), "Q5_0": (22, 0, -16.0), "Q5_1": (24, 2, 1.0)}
)
"""Bytes of a block of 32, where the float16 stands, and what it is multiplied by."""


def block_minima(raw: NDArray[np.uint8], weight_type: str) -> NDArray[np.float64] | None:
    """`[out, in / 32]` of a matrix's bytes `[out, row_bytes]`; None for a type that has none."""
    if weight_type not in _BLOCKS:
        return None
    size, at, factor = _BLOCKS[weight_type]
    halves = np.ascontiguousarray(raw.reshape(len(raw), -1, size)[:, :, at : at + 2]).view("<f2")
    return halves[:, :, 0].astype(np.float64) * factor
