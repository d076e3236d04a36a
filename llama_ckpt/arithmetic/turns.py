"""Cosines and sines of RoPE's angles as programs in float32 make them, in the program's order.

A GPU has instructions for both that are fast and less exact, `sin.approx` and `cos.approx`; a program that is
compiled with `-use_fast_math`, as llama.cpp's CUDA program is, has no others. What becomes of an angle before
a table is read was seen on an H200 and is computed here; what tables leave is not written down, `fast_error`
says how much it may be. numpy only.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["FAST_STEP", "FAST_TURNS", "cos_and_sin", "fast_error"]

Array: TypeAlias = NDArray[np.float64]
Float32: TypeAlias = NDArray[np.float32]


FAST_TURNS = "sin.approx"
"""What the line `turns` says of a program that takes cosines and sines by those instructions."""

FAST_STEP = 2.0**-21.19
"""Their largest error between -pi and pi (CUDA C++ Programming Guide, intrinsic functions: `__cosf`; `__sinf`
has 2^-21.41)."""

IN_TURNS = np.float64(np.float32(1 / (2 * np.pi)))
"""What an angle is multiplied with before the table is read."""


def fast_error(positions: ArrayLike, frequencies: ArrayLike) -> Array:
    """What their tables may leave of a cosine or a sine, `[n, 1, head_dim / 2]`; 0 has none."""
    angle = np.asarray(positions, np.float64)[:, None] * np.asarray(frequencies, np.float64)
    return np.where(angle == 0, 0.0, FAST_STEP)[:, None, :]


def cos_and_sin(
    positions: ArrayLike, frequencies: ArrayLike, how: str, *, fast: bool = False
) -> tuple[Array, Array]:
    """`[n, 1, head_dim / 2]` each; how: one of `record.ANGLES`; fast: by a GPU's fast instructions.

    The cosine and sine of a float32 angle are taken in float64: what C's rounding leaves is float32's own.
    """
    exact = np.asarray(frequencies, np.float64)
    angle: NDArray[np.floating[Any]]
    if how == "float64":
        angle = np.asarray(positions, np.float64)[:, None] * exact
        angle = angle.astype(np.float32) if fast else angle
    else:
        at = np.asarray(positions, np.float32)[:, None]
        angle = at * exact.astype(np.float32) if how == "float32" else _by_ratio(at, exact, how)
    wide = angle.astype(np.float64)[:, None, :]
    if fast:
        wide = 2 * np.pi * _cut(wide * IN_TURNS)
    return np.cos(wide), np.sin(wide)


def _cut(x: Array) -> Array:
    """Products of two float32 as `mul.rz.f32` leaves them: float32's digits, towards zero."""
    near = x.astype(np.float32)
    beyond = np.abs(near.astype(np.float64)) > np.abs(x)
    return np.where(beyond, np.nextafter(near, np.float32(0)), near).astype(np.float64)


def _by_ratio(at: Float32, frequencies: Array, how: str) -> Float32:
    """Angles from the ratio of neighbouring frequencies, and the first one, 1 / the scale of positions."""
    n = len(frequencies)
    ratio = np.float32(frequencies[1] / frequencies[0]) if n > 1 else np.float32(1)
    if how == "float32-powers":
        powers = (np.float64(ratio) ** np.arange(n)).astype(np.float32)
        angles = at * powers
    else:
        factors = np.concatenate([at, np.full((len(at), n - 1), ratio)], axis=1)
        angles = np.multiply.accumulate(factors, axis=1, dtype=np.float32)
    return np.asarray(angles * np.float32(frequencies[0]), np.float32)
