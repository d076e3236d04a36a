"""What may lie in a cache in place of a row's key and value: other tensors of the same program. numpy only.

`cached_keys` guesses which rows were read; here the rows are right, and what was kept of them is not: keys
before RoPE or turned again, scaled already, another block's, heads in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Kept", "kept_otherwise"]

Array = NDArray[Any]

MOST_BLOCKS = 8
"""Of other blocks so many are looked at, the nearest first."""


@dataclass(frozen=True)
class Kept:
    """Other keys and values, `[rows, kv_heads, head_dim]`, how to say it and what to do."""

    words: str
    hint: str
    k: Array
    v: Array


def kept_otherwise(
    k: Array,
    v: Array,
    before: list[int],
    own: list[int],
    block: int,
    read: Callable[[int, str], Array | None],
) -> Iterator[Kept]:
    """What may have been kept, the likeliest first.

    Args:
        k, v: of every row of the file, keys after RoPE. before, own: rows of earlier calls, and of this one.
        read: a point of a block, as k is; None where it is not recorded.
    """
    if not before:
        yield from _exchanged(k, v, own, "the call's keys are kept as values, and its values as keys")
        return
    for words, hint, keys in _keys(k, before, own, read(block, "k")):
        yield Kept(words, hint, keys, v)
    for other in sorted(range(block + MOST_BLOCKS), key=lambda one: abs(one - block))[1:]:
        theirs = read(other, "k_rope"), read(other, "v")
        if theirs[0] is not None and theirs[1] is not None:
            words = f"the cache of block {other} is read in place of block {block}'s"
            keys, values = (
                _with(x, before, y[before]) for x, y in zip((k, v), theirs, strict=True) if y is not None
            )
            yield Kept(words, "give each block a cache of its own", keys, values)
    heads = np.arange(k.shape[1])
    if len(heads) > 1:
        for order in (heads[::-1], np.roll(heads, 1), np.roll(heads, -1)):
            keys, values = (_with(x, before, x[before][:, order]) for x in (k, v))
            words = "the cache's key heads are read in another order"
            yield Kept(words, "read heads in the order in which they were written", keys, values)
    yield from _exchanged(k, v, own, "the call's keys are kept as values, and its values as keys")
    yield from _exchanged(k, v, before, "the cache's keys are read as values, and its values as keys")


def _keys(
    k: Array, before: list[int], own: list[int], plain: Array | None
) -> Iterator[tuple[str, str, Array]]:
    scale = k.shape[-1] ** -0.5
    for rows, which in ((before, "the cached keys"), (before + own, "the keys")):
        words = f"{which} are scaled when they are kept, and the scores once more"
        yield words, "scale once", _with(k, rows, k[rows] * scale)
    if plain is None or plain.shape != k.shape:
        return
    for rows, which in ((before, "the cached keys"), (before + own, "the keys")):
        words = f"{which} are kept before RoPE, and read without it"
        yield words, "keep keys after RoPE, or turn them where they are read", _with(k, rows, plain[rows])
    for halves in (False, True):
        again = _turned_again(plain[before], k[before], halves)
        hint = "turn each key once, by its own position"
        yield "the cached keys are turned again by RoPE", hint, _with(k, before, again)


def _exchanged(k: Array, v: Array, rows: list[int], words: str) -> Iterator[Kept]:
    yield Kept(words, "write keys to keys", _with(k, rows, v[rows]), _with(v, rows, k[rows]))


def _with(x: Array, rows: list[int], y: Array) -> Array:
    made = x.copy()
    made[rows] = y
    return made


def _turned_again(plain: Array, turned: Array, halves: bool) -> Array:
    """What turns one into the other, done to the other once more; pairs of neighbours, or of halves."""

    def pairs(x: Array) -> Array:
        if halves:
            return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2)
        return x.reshape(*x.shape[:-1], -1, 2)

    a, b = (
        np.ascontiguousarray(pairs(np.asarray(x, np.float64))).view(np.complex128)[..., 0]
        for x in (plain, turned)
    )
    with np.errstate(all="ignore"):
        made = b * np.where(a != 0, b / np.where(a != 0, a, 1), 1)
    flat = np.ascontiguousarray(made)[..., None].view(np.float64)
    return np.asarray((flat.swapaxes(-1, -2) if halves else flat).reshape(plain.shape))
