"""What a number in the middle of two may become, and what follows of it: the ties of a declared arithmetic.

A program's last bit of float32 decides there, and nobody can repeat it. So both neighbours are right, of an
activation, a scale, a sum that is kept or a weight, with all that a product makes of the step between them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.floats import FLOATS
from llama_ckpt.arithmetic.formats import SCALED, UNROUNDED, round_rows, rounded
from llama_ckpt.arithmetic.integers import INTEGERS, either_scale
from llama_ckpt.arithmetic.products import undecided
from llama_ckpt.arithmetic.rests import TwoParts, two_parts
from llama_ckpt.judging.limits import ELEMENT

__all__ = [
    *("ADDED_UP", "RECORDED", "SMOOTH"),
    *("added", "fallen", "of_both", "of_minima", "of_parts", "of_weights", "step", "through"),
]

Array: TypeAlias = NDArray[Any]

RECORDED = 2.0**-22
"""By how much of itself a recorded number may have been moved before it is rounded: a scale's float32
rounding, and that a program may divide where another multiplies."""

SMOOTH = 2.5
"""What moves by less than so many times what it was moved by, which is twice, up and down, has not fallen to
another neighbour. A number that a fall before it moved by a part of a step may fall by a whole one."""

ADDED_UP = 2.0**-22
"""Of terms that a product in parts adds up beside the rest, four roundings."""


def fallen(x: Array, off: Array | None, name: str) -> Array | None:
    """By how much each element may be rounded to another neighbour; None where nothing is rounded.

    Args:
        off: how far from the program's own x may be, where it was not recorded.
    """
    if name in UNROUNDED:
        return None
    moved, away = _moved(x, off)
    away = _beside_the_largest(x, away, name)
    found = _beyond(rounded(x + away, name) - rounded(x - away, name), moved)
    scales = either_scale(x, name) if name in INTEGERS else None
    return found if scales is None else found + scales


def _beside_the_largest(x: Array, away: Array, name: str) -> Array:
    """What elements are moved by; where the largest sets the scale it stays, or all would move alike."""
    if name in SCALED:
        size = x.shape[-1] if SCALED[name][1] == "row" else x.size
    elif name in INTEGERS:
        block = INTEGERS[name].block
        size = x.size if block < 0 else block or x.shape[-1]
    else:
        return away
    blocks = np.abs(x).reshape(-1, size)
    stays = blocks == blocks.max(axis=-1, keepdims=True)
    return np.where(stays.reshape(x.shape), 0.0, away)


def _moved(x: Array, off: Array | None) -> tuple[Array, Array]:
    """By how much each element may have been moved, and the same with its sign."""
    moved = RECORDED * np.abs(x) if off is None else np.hypot(RECORDED * x, ELEMENT * off)
    return moved, np.copysign(moved, x)


def _beyond(apart: Array, moved: Array, times: float = SMOOTH) -> Array:
    """What is apart by more than it was moved."""
    return np.asarray(np.where(np.abs(apart) > times * moved, np.abs(apart), 0.0))


def of_parts(x: Array, off: Array | None, name: str, w: TwoParts) -> Array | None:
    """Ties of a product in parts: what one part loses to the other is multiplied with a coarser weight."""
    moved, away = _moved(x, off)
    up, down = two_parts(x + away, name), two_parts(x - away, name)
    changes = (
        (up.high - down.high, w.high - w.coarse),
        (up.whole - down.whole, w.coarse),
        (up.coarse - down.coarse, w.low),
    )
    found: Array | None = None
    for apart, matrix in changes:
        # A rest's steps are small, and each counts: what has not fallen is apart by twice the move at most.
        found = added(found, through(_beyond(apart, moved, 2.0), matrix))
    return found


def of_weights(x: Array, w: Any, reading: str) -> Array | None:
    """What weights may add that lie in the middle of two numbers, `[n, out]`: a scale's last bit decides."""
    if reading not in (*INTEGERS, *SCALED):
        return None
    rows, falls = undecided(w, reading, lambda values: fallen(values, None, reading))
    if not len(rows):
        return None
    found = np.zeros((len(x), len(w)))
    found[:, rows] = _at_most(falls, x).T
    return found


def of_minima(x: Array, name: str, minima: Array | None) -> Array | None:
    """What float32 leaves of minima times sums, `[n, out]`: they may be larger than their product is."""
    if minima is None or (sums := round_rows(x, name).sums) is None:
        return None
    return np.asarray(ADDED_UP * np.sqrt(np.square(sums) @ np.square(minima).T))


def through(x: Array | None, w: Any) -> Array | None:
    """What x comes to in x wᵀ, of the few columns of x that hold anything."""
    if x is None or not x.any():
        return None
    columns = np.flatnonzero(x.any(axis=0))
    return _at_most(x[:, columns], np.asarray(w)[:, columns])


def of_both(a: Array | None, x: Array, b: Array | None, y: Array) -> Array | None:
    """What a and b, by which x and y may be off, come to in x yᵀ."""
    found: Array | None = None
    if a is not None and a.any():
        found = _at_most(a, y)
    if b is not None and b.any():
        found = added(found, _at_most(b, x).swapaxes(-1, -2))
    return found


def _at_most(off: Array, w: Array) -> Array:
    """Of off wᵀ: all of it where few elements are off, else as much as chance makes of many."""
    along, chance = np.abs(w).swapaxes(-1, -2), np.square(w).swapaxes(-1, -2)
    return np.asarray(np.minimum(off @ along, BY_CHANCE * np.sqrt(np.square(off) @ chance)))


def added(a: Array | None, b: Array | None) -> Array | None:
    """The sum of what there is of both; None where neither is."""
    return b if a is None else a if b is None else a + b


def step(name: str, x: Array) -> Array:
    """From a number to its neighbour in a format."""
    form = FLOATS[name]
    _, exponent = np.frexp(x)
    return np.asarray(np.ldexp(1.0, np.maximum(exponent - form.digits, form.smallest)))


BY_CHANCE = 3.0
"""Many elements that fall either way add up as chance has it: to hardly more than so many times its root."""
