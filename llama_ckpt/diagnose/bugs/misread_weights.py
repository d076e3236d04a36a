"""What weights become when their blocks of 32 are read wrongly, from their right values alone.

A block of Q4_0 holds a scale and 32 numbers of 4 bits, of which byte i has number i in its low half and
number i + 16 in its high one; the value is scale * (number - 8), so that the value of largest magnitude
is -8 scales.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.patched_oracle import DoesNotApply

__all__ = ["nibbles_interleaved", "scale_of_next_block", "zero_point_forgotten"]

Array: TypeAlias = NDArray[Any]

BLOCK = 32


def nibbles_interleaved(w: Array) -> Array:
    """Byte i is taken to hold numbers 2i and 2i + 1: a permutation in each block."""
    blocks = _blocks(w)
    return blocks.reshape(*blocks.shape[:-1], 2, 16).swapaxes(-1, -2).reshape(w.shape)


def scale_of_next_block(w: Array) -> Array:
    """Every block is multiplied by its successor's scale, the last of a row by the first's."""
    blocks = _blocks(w)
    if blocks.shape[-2] < 2:
        raise DoesNotApply
    scales = np.abs(blocks).max(axis=-1, keepdims=True)
    following = np.roll(scales, -1, axis=-2)
    rescaled: Array = blocks * (following / np.where(scales > 0, scales, 1.0))
    return rescaled.reshape(w.shape)


def zero_point_forgotten(w: Array) -> Array:
    """The 8 is not subtracted, so that every value is 8 scales too large."""
    blocks = _blocks(w)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    shifted: Array = blocks - largest
    return shifted.reshape(w.shape)


def _blocks(w: Array) -> Array:
    if w.shape[-1] % BLOCK:
        raise DoesNotApply
    return w.reshape(*w.shape[:-1], -1, BLOCK)
