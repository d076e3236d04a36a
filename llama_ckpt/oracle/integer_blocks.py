"""What a quantized matrix is made of: integers, what each stands for, scales and minima, in numpy.

    value = scale * meaning[integer] + minimum

`gguf` gives values alone; who asks how a program misread a matrix needs the parts. A test holds them to the
values, bit for bit but for the last rounding.

Source: the block structures of ggml (`ggml-common.h`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["PARTS_OF", "BlockParts", "integer_blocks", "parts_of_values"]

Array: TypeAlias = NDArray[Any]
Bytes: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class BlockParts:
    """A matrix's parts; columns of a group share scale and minimum.

    Attributes:
        integers: `[out, in]`, 0 and up.
        meaning: what each integer stands for.
        scale, minimum: `[out, groups]`; minimum None where the type has none.
        bits: of an integer.
        scales, minima: `[out, groups]`, the small integers that a super-block's groups have, None in types
            without; d, dmin: `[out, groups]`, the super-block's factors of these.
    """

    integers: Array
    meaning: Array
    scale: Array
    minimum: Array | None
    bits: int
    scales: Array | None = None
    minima: Array | None = None
    d: Array | None = None
    dmin: Array | None = None

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return int(self.integers.shape[1] // self.scale.shape[1])

    def values(self, rows: Any = slice(None)) -> Array:
        """The matrix, or some of its rows, float64."""
        made = self.meaning[self.integers[rows]] * np.repeat(self.scale[rows], self.group, axis=1)
        if self.minimum is not None:
            made = made + np.repeat(self.minimum[rows], self.group, axis=1)
        return np.asarray(made)


def integer_blocks(raw: Bytes, weight_type: str) -> BlockParts | None:
    """The parts of a matrix's bytes `[out, row_bytes]`; None for a type that has no integers."""
    if weight_type not in PARTS_OF:
        return None
    size, read = PARTS_OF[weight_type]
    return read(raw.reshape(len(raw), -1, size))


def parts_of_values(w: Array) -> BlockParts | None:
    """The parts of a matrix whose values are those of Q4_0 or Q8_0, in a file that keeps them as floats."""
    if w.ndim != 2 or w.shape[1] % 32:
        return None
    blocks = np.asarray(w, np.float64).reshape(len(w), -1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], axis=-1)
    for bits, scale in ((4, largest / -8), (8, np.abs(largest) / 127)):
        with np.errstate(all="ignore"):
            integers = np.where(scale != 0, blocks / scale, 0.0)
        nearest, most = np.rint(integers), 1 << (bits - 1)
        if np.abs(integers - nearest).max() > 1e-3 or nearest.max() > most - 1 or nearest.min() < -most:
            continue
        levels = np.arange(1 << bits)
        meaning = levels - 8 if bits == 4 else np.where(levels < 128, levels, levels - 256)
        shifted = nearest + 8 if bits == 4 else nearest % 256
        flat = shifted.astype(np.int64).reshape(w.shape)
        return BlockParts(flat, meaning.astype(np.float64), scale[..., 0], None, bits)
    return None


def _half(blocks: Bytes, at: int) -> Array:
    """`[out, blocks]`, the float16 at a byte of each block."""
    halves = np.ascontiguousarray(blocks[:, :, at : at + 2]).view("<f2")
    return np.asarray(halves[:, :, 0].astype(np.float64))


def _fields(packed: Bytes, bits: int) -> Array:
    """`[..., k]` bytes to `[..., 8 / bits, k]`: the lowest bits of all bytes first."""
    shifts = range(0, 8, bits)
    return np.stack([(packed >> shift) & ((1 << bits) - 1) for shift in shifts], axis=-2).astype(np.int64)


def _flat(integers: Array) -> Array:
    return np.asarray(integers.reshape(len(integers), -1))


def _nibbles(blocks: Bytes, at: int) -> Array:
    """Of a block of 32, whose bytes hold number i low and number i + 16 high."""
    return _fields(blocks[:, :, at : at + 16], 4).reshape(*blocks.shape[:2], 32)


def _fifth(blocks: Bytes, at: int) -> Array:
    bits = np.unpackbits(blocks[:, :, at : at + 4], axis=-1, bitorder="little")
    return bits.astype(np.int64) << 4


def _simple(integers: Array, zero: int, bits: int, scale: Array, minimum: Array | None) -> BlockParts:
    meaning = np.arange(1 << bits, dtype=np.float64) - zero
    return BlockParts(_flat(integers), meaning, scale, minimum, bits)


def _q4_0(b: Bytes) -> BlockParts:
    return _simple(_nibbles(b, 2), 8, 4, _half(b, 0), None)


def _q4_1(b: Bytes) -> BlockParts:
    return _simple(_nibbles(b, 4), 0, 4, _half(b, 0), _half(b, 2))


def _q5_0(b: Bytes) -> BlockParts:
    return _simple(_nibbles(b, 6) | _fifth(b, 2), 16, 5, _half(b, 0), None)


def _q5_1(b: Bytes) -> BlockParts:
    return _simple(_nibbles(b, 8) | _fifth(b, 4), 0, 5, _half(b, 0), _half(b, 2))


def _q8_0(b: Bytes) -> BlockParts:
    levels = np.arange(256)
    meaning = np.where(levels < 128, levels, levels - 256).astype(np.float64)
    return BlockParts(_flat(b[:, :, 2:].astype(np.int64)), meaning, _half(b, 0), None, 8)


def _super(
    integers: Array, zero: int, bits: int, d: Array, scales: Array, dmin: Array | None, minima: Array | None
) -> BlockParts:
    """Of groups with small integers for scales; these `[out, blocks, groups]`, d `[out, blocks]`."""
    groups = scales.shape[2]
    wide = np.repeat(d, groups, axis=1)
    meaning = np.arange(1 << bits, dtype=np.float64) - zero
    small = _flat(scales).astype(np.float64)
    if dmin is None or minima is None:
        return BlockParts(_flat(integers), meaning, wide * small, None, bits, small, None, wide)
    low, wide_min = _flat(minima).astype(np.float64), np.repeat(dmin, groups, axis=1)
    minimum = -wide_min * low
    return BlockParts(_flat(integers), meaning, wide * small, minimum, bits, small, low, wide, wide_min)


def _q2_k(b: Bytes) -> BlockParts:
    shape = (*b.shape[:2], 16, 16)
    q = _fields(b[:, :, 16:80].reshape(*b.shape[:2], 2, 32), 2).reshape(shape)
    return _super(q, 0, 2, _half(b, 80), b[:, :, :16] & 15, _half(b, 82), b[:, :, :16] >> 4)


def _q3_k(b: Bytes) -> BlockParts:
    head = b.shape[:2]
    low = _fields(b[:, :, 96:104], 4).reshape(*head, 16)
    high = _fields(b[:, :, 104:108], 2).reshape(*head, 16)
    q = _fields(b[:, :, 32:96].reshape(*head, 2, 32), 2).reshape(*head, 256)
    mask = _fields(b[:, :, :32], 1).reshape(*head, 256)
    return _super(q | (mask << 2), 4, 3, _half(b, 108), (low | (high << 4)) - 32, None, None)


def _scales_and_mins(packed: Bytes) -> tuple[Array, Array]:
    first, second, third = (packed[:, :, i : i + 4].astype(np.int64) for i in (0, 4, 8))
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 2) & 48)), axis=2)
    mins = np.concatenate((second & 63, (third >> 4) | ((second >> 2) & 48)), axis=2)
    return scales, mins


def _q4_k(b: Bytes) -> BlockParts:
    head = b.shape[:2]
    scales, mins = _scales_and_mins(b[:, :, 4:16])
    q = _fields(b[:, :, 16:].reshape(*head, 4, 32), 4).reshape(*head, 256)
    return _super(q, 0, 4, _half(b, 0), scales, _half(b, 2), mins)


def _q5_k(b: Bytes) -> BlockParts:
    head = b.shape[:2]
    scales, mins = _scales_and_mins(b[:, :, 4:16])
    low = _fields(b[:, :, 48:].reshape(*head, 4, 32), 4).reshape(*head, 256)
    high = _fields(b[:, :, 16:48], 1).reshape(*head, 256)
    return _super(low | (high << 4), 0, 5, _half(b, 0), scales, _half(b, 2), mins)


def _q6_k(b: Bytes) -> BlockParts:
    head = b.shape[:2]
    low = _fields(b[:, :, :128].reshape(*head, 2, 64), 4).reshape(*head, 256)
    high = _fields(b[:, :, 128:192].reshape(*head, 2, 32), 2).reshape(*head, 256)
    scales = np.ascontiguousarray(b[:, :, 192:208]).view(np.int8).astype(np.int64)
    return _super(low | (high << 4), 32, 6, _half(b, 208), scales, None, None)


IQ4: Final = np.array((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.float64)
"""What the nibbles of the IQ4 types stand for."""


def _iq4_nl(b: Bytes) -> BlockParts:
    return BlockParts(_flat(_nibbles(b, 2)), IQ4, _half(b, 0), None, 4)


PARTS_OF: Final[Mapping[str, tuple[int, Callable[[Bytes], BlockParts]]]] = MappingProxyType(
    {
        "Q4_0": (18, _q4_0),
        "Q4_1": (20, _q4_1),
        "Q5_0": (22, _q5_0),
        "Q5_1": (24, _q5_1),
        "Q8_0": (34, _q8_0),
        "IQ4_NL": (18, _iq4_nl),
        "Q2_K": (84, _q2_k),
        "Q3_K": (110, _q3_k),
        "Q4_K": (144, _q4_k),
        "Q5_K": (176, _q5_k),
        "Q6_K": (210, _q6_k),
    }
)
"""Type to the bytes of a block and what reads `[out, blocks, bytes]`."""
