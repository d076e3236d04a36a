"""What a quantized weight's values are made of: value = scale · integer + minimum, block by block.

ggml multiplies a block's minimum by the sum of a block of activations, which it keeps beside them and rounds
by itself; and some of its kernels round scale and minimum to float16 first. The types without a minimum of
their own have one where a program counts their integers from 0 up: -8 · d in Q4_0, -16 · d in Q5_0.

Source: the block structures of ggml (`ggml-common.h`). numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["block_minima", "half_scaled"]

Array: TypeAlias = NDArray[np.float64]

_BLOCKS: Final[Mapping[str, tuple[int, int, float]]] = MappingProxyType(
    {"Q4_0": (18, 0, -8.0), "Q4_1": (20, 2, 1.0), "Q5_0": (22, 0, -16.0), "Q5_1": (24, 2, 1.0)}
)
"""Bytes of a block of 32, where the float16 of its minimum stands, and what that is multiplied by."""

_K_BLOCKS: Final = MappingProxyType({"Q2_K": 84, "Q4_K": 144, "Q5_K": 176})
"""Bytes of a block of 256, whose groups have scales and minima of four or six bits."""


def block_minima(raw: NDArray[np.uint8], weight_type: str) -> Array | None:
    """`[out, groups]` of a matrix's bytes `[out, row_bytes]`; None for a type that has none.

    Those of K types are rounded to float16, as the one kernel has them that multiplies them by sums.
    """
    if weight_type in _K_BLOCKS:
        return -_halves(_scales_and_minima(raw, weight_type)[1])
    if weight_type not in _BLOCKS:
        return None
    size, at, factor = _BLOCKS[weight_type]
    return _float16(raw.reshape(len(raw), -1, size), at) * factor


def half_scaled(values: Array, raw: NDArray[np.uint8], weight_type: str) -> Array:
    """A matrix's values `[out, in]` once its groups' scales and minima are rounded to float16.

    Raises:
        KeyError: the type has no scales of groups.
    """
    scale, minimum = _scales_and_minima(raw, weight_type)
    groups = values.reshape(*scale.shape, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        integers = np.rint((groups + minimum[..., None]) / scale[..., None])
    integers[scale == 0] = 0
    return (_halves(scale)[..., None] * integers - _halves(minimum)[..., None]).reshape(values.shape)


def _scales_and_minima(raw: NDArray[np.uint8], weight_type: str) -> tuple[Array, Array]:
    """Of each group of 32, of 16 in Q2_K, `[out, groups]`: d · scale and dmin · minimum."""
    blocks = raw.reshape(len(raw), -1, _K_BLOCKS[weight_type])
    if weight_type == "Q2_K":
        packed = blocks[..., :16]
        return _multiplied(blocks, (80, packed & 15), (82, packed >> 4))
    packed = blocks[..., 4:16]
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 2) & 48)], axis=-1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 2) & 48)], axis=-1)
    return _multiplied(blocks, (0, scales), (2, minima))


def _multiplied(blocks: NDArray[np.uint8], *parts: tuple[int, NDArray[Any]]) -> tuple[Array, Array]:
    """Two fields of integers, each times the float16 that stands at a place of its block."""
    made = [(_float16(blocks, at)[..., None] * field).reshape(len(blocks), -1) for at, field in parts]
    return made[0], made[1]


def _float16(blocks: NDArray[np.uint8], at: int) -> Array:
    """The float16 at a place of each block, `[out, blocks]`."""
    halves = np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")
    return halves[..., 0].astype(np.float64)


def _halves(x: Array) -> Array:
    return x.astype(np.float16).astype(np.float64)
