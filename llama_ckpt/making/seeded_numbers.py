"""Numbers out of a counter: the same bits on every machine, in any order, on any number of threads.

An element is a function of (seed, name, index) and of nothing else. A 64-bit key, the first eight
bytes of SHA-256 over seed and name, starts a splitmix64 sequence; its element `index` is hashed on
its own, so that any row of any tensor can be made without the ones before. The sum of the four
16-bit lanes of that hash, centred, is close to normal (Irwin-Hall: its variance is known exactly,
its tails end at 3.46 standard deviations, so nothing can overflow). All of that is integer
arithmetic. What follows is one float32 multiplication, rounded as IEEE 754 demands: no libm, no
fused operation.

Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators" (2014).
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["LANE_SUM_SD", "MAX_ROW_WIDTH", "centred_sums", "seeded_rows", "sequence_key"]

LANE_SUM_SD: Final = math.sqrt((65536.0 * 65536.0 - 1.0) / 3.0)
"""Standard deviation of the sum of four uniform 16-bit integers: sqrt(4 * (65536^2 - 1) / 12)."""

MAX_ROW_WIDTH: Final = 1 << 16
"""Longest row, in elements: two scratch arrays of 512 KiB stay in a core's cache."""

_GENERATION: Final = "llama_ckpt seeded numbers 1"  # part of every key: another recipe, other numbers
_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_RAMP: Final[NDArray[np.uint64]] = np.arange(MAX_ROW_WIDTH, dtype=np.uint64) * _GAMMA
_FACTORS: Final = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))
_LAST_SHIFT: Final = np.uint64(31)
_LOW_LANES: Final = np.uint64(0x0000FFFF0000FFFF)
_MIDDLE: Final = 2 * 65535  # the middle of 0 … 4 * 65535


def sequence_key(seed: int, name: str) -> int:
    """The 64-bit key of one sequence, from SHA-256 over the seed and the name."""
    text = f"{_GENERATION}\0{seed}\0{name}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def _hash_in_place(z: NDArray[np.uint64], scratch: NDArray[np.uint64]) -> None:
    """splitmix64's finaliser on every element of `z`."""
    for shift, factor in _FACTORS:
        np.right_shift(z, np.uint64(shift), out=scratch)
        np.bitwise_xor(z, scratch, out=z)
        np.multiply(z, factor, out=z)
    np.right_shift(z, _LAST_SHIFT, out=scratch)
    np.bitwise_xor(z, scratch, out=z)


def centred_sums(key: int, rows: NDArray[np.int64], out: NDArray[np.int32]) -> None:
    """Fill `out` with the given rows of a sequence that is read as a matrix as wide as `out`.

    Args:
        key: from `sequence_key`.
        rows: [n], the numbers of the rows, in any order; element (row, column) is the element
            `row * width + column` of the sequence.
        out: int32 [n, width], width at most `MAX_ROW_WIDTH`; receives sums of four 16-bit lanes
            minus their middle: -131070 … 131070, mean 0, standard deviation `LANE_SUM_SD`.
    """
    n, width = out.shape
    together = max(1, MAX_ROW_WIDTH // width)
    z_scratch, t_scratch = np.empty((2, min(together, n), width), np.uint64)
    origins = np.uint64(key) + rows.astype(np.uint64) * np.uint64(width) * _GAMMA
    for start in range(0, n, together):
        part = out[start : start + together]
        z, t = z_scratch[: len(part)], t_scratch[: len(part)]
        np.add(origins[start : start + together, None], _RAMP[:width], out=z)
        _hash_in_place(z, t)
        np.right_shift(z, np.uint64(16), out=t)
        np.bitwise_and(z, _LOW_LANES, out=z)
        np.bitwise_and(t, _LOW_LANES, out=t)
        np.add(z, t, out=z)  # two sums of two lanes, in the two 32-bit halves
        halves = z.view(np.int32)
        np.add(halves[:, 0::2], halves[:, 1::2], out=part)
        np.subtract(part, _MIDDLE, out=part)


def seeded_rows(seed: int, name: str, rows: NDArray[np.int64], width: int, sd: float) -> NDArray[np.float32]:
    """Rows of one tensor: float32 [len(rows), width], mean 0, standard deviation `sd`.

    Each value is an integer below 2^17 times the float32 nearest to `sd / LANE_SUM_SD`, rounded once.
    """
    sums = np.empty((len(rows), width), np.int32)
    centred_sums(sequence_key(seed, name), rows, sums)
    values: NDArray[Any] = sums.view(np.float32)  # converted in place: half the memory traffic
    np.multiply(sums, np.float32(sd / LANE_SUM_SD), out=values, dtype=np.float32, casting="unsafe")
    return values
