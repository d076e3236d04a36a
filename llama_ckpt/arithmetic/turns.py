"""Cosines and sines of RoPE's angles as programs in float32 make them, in the program's order. numpy only."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["cos_and_sin"]

Array: TypeAlias = NDArray[np.float64]
Float32: TypeAlias = NDArray[np.float32]


def cos_and_sin(positions: ArrayLike, frequencies: ArrayLike, how: str) -> tuple[Array, Array]:
    """`[n, 1, head_dim / 2]` each; how: one of `record.ANGLES` but float64.

    The cosine and sine of a float32 angle are taken in float64: what C's rounding leaves is float32's own.
    """
    at = np.asarray(positions, np.float32)[:, None]
    exact = np.asarray(frequencies, np.float64)
    angle = at * exact.astype(np.float32) if how == "float32" else _by_ratio(at, exact, how)
    wide = angle.astype(np.float64)[:, None, :]
    return np.cos(wide), np.sin(wide)


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
