"""Ways to misread a quantized matrix: each gives the matrix's parts as a wrong program takes them.

numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.misreading import Misreading
from llama_ckpt.identify.small_scales import small_scales
from llama_ckpt.oracle.integer_blocks import IQ4, BlockParts

__all__ = ["LOW_BITS", "Misreading", "block_orders", "misreadings"]

Array: TypeAlias = NDArray[Any]

AWQ = (0, 2, 4, 6, 1, 3, 5, 7)
"""In which order eight integers of 4 bits lie in 32 bits as AWQ packs them."""


LOW_BITS = {3: 2, 5: 4, 6: 4}
"""Bits of an integer to how many of them lie together; the others lie apart."""


def misreadings(parts: BlockParts) -> Iterator[Misreading]:
    """All that make sense for these parts, the commonest first."""
    yield from _meanings(parts)
    yield from _scales(parts)
    if parts.minimum is not None:
        yield from _minima(parts)
    yield from _orders(parts)
    if parts.minimum is None and parts.bits == 4 and np.array_equal(np.diff(parts.meaning), np.ones(15)):
        yield from _borrowed(parts)


def _meanings(parts: BlockParts) -> Iterator[Misreading]:
    n, right = len(parts.meaning), parts.meaning
    levels = np.arange(n, dtype=np.float64)
    half = n // 2
    signed = np.where(levels < half, levels, levels - n)

    def means(kind: str, sentence: str, meaning: Array) -> Iterator[Misreading]:
        if not np.array_equal(meaning, right):
            yield Misreading(kind, sentence, lambda p: replace(p, meaning=meaning))

    zero = float(-right[0])
    yield from means("sign", "integers are read as two's complement", signed)
    yield from means("zero", f"the zero point is not subtracted: integers are too large by {half}", levels)
    yield from means("zero", f"integers are read less {half}", levels - half)
    if parts.bits < 8:
        for by in (-1, 1):
            said = f"the zero point is {zero - by:g}, not {zero:g}: integers are too large by {by}"
            yield from means("zero", said, right + by)
    yield from means("sign", "the sign of every integer is turned", -right)
    if n == 16:
        yield from means("bits", "integers of 4 bits are read by the table of the IQ4 types", IQ4)
    for bits in range(2, parts.bits):
        kept = levels.astype(np.int64) & ((1 << bits) - 1)
        said = f"only the lowest {bits} bits of each integer are read"
        yield from means("bits", said, right[kept])
        yield from means("bits", said + f", less {1 << (bits - 1)}", kept - float(1 << (bits - 1)))


def _borrowed(parts: BlockParts) -> Iterator[Misreading]:
    """Several integers made signed by one subtraction: a negative one takes one from its neighbour."""
    half = len(parts.meaning) // 2
    for size in (4, 8, 2):
        said = f"integers borrow: one is too small by 1 where its neighbour before it, of {size}, is negative"
        yield Misreading("borrow", said, _borrowing(size, half))


def _borrowing(size: int, half: int) -> Callable[[BlockParts], BlockParts]:
    def read(p: BlockParts) -> BlockParts:
        q = p.integers
        taken = np.zeros_like(q)
        taken[:, 1:] = (q[:, :-1] < half) & (np.arange(1, q.shape[1]) % size != 0)
        return replace(p, integers=q - taken + 1, meaning=np.concatenate([[p.meaning[0] - 1], p.meaning]))

    return read


def _scales(parts: BlockParts) -> Iterator[Misreading]:
    group = parts.group
    if parts.scale.shape[1] > 1:
        for by, whose in ((-1, "next"), (1, "previous")):
            said = f"each group of {group} has the scale of the {whose} one"
            yield Misreading("scale", f"{said} in its row", _moved(by, flat=False))
            yield Misreading("scale", f"{said}, across rows", _moved(by, flat=True))
        yield Misreading("scale", "all groups of a row have the scale of the first", _first)
        yield from _of_tiles(parts)
        yield Misreading("scale", "the scales' rows and groups are exchanged", _exchanged)
    for by, whose in ((-1, "next"), (1, "previous")):
        yield Misreading("scale", f"each row has the scales of the {whose} row", _of_rows(by))
    if parts.scales is not None and parts.d is not None:
        yield from small_scales(parts)


def _moved(by: int, *, flat: bool) -> Callable[[BlockParts], BlockParts]:
    def read(p: BlockParts) -> BlockParts:
        axis = None if flat else 1
        minimum = None if p.minimum is None else np.roll(p.minimum, by, axis=axis)
        return replace(p, scale=np.roll(p.scale, by, axis=axis), minimum=minimum)

    return read


def _of_rows(by: int) -> Callable[[BlockParts], BlockParts]:
    return lambda p: replace(p, scale=np.roll(p.scale, by, axis=0))


def _first(p: BlockParts) -> BlockParts:
    return replace(p, scale=np.broadcast_to(p.scale[:, :1], p.scale.shape))


def _of_tiles(parts: BlockParts) -> Iterator[Misreading]:
    """Tiles of several groups that take one scale for all."""
    groups = parts.scale.shape[1]

    def of_one(size: int, which: int) -> Callable[[BlockParts], BlockParts]:
        def shared(numbers: Array) -> Array:
            tiles = numbers.reshape(len(numbers), -1, size)
            return np.repeat(tiles[..., which], size, axis=1)

        def read(p: BlockParts) -> BlockParts:
            return replace(p, scale=shared(p.scale), minimum=None if p.minimum is None else shared(p.minimum))

        return read

    for size in (2, 4, 8):
        if groups % size == 0 and groups > size:
            for which, whose in ((0, "first"), (size - 1, "last")):
                said = f"of each {size} groups of {parts.group} all have the scale of the {whose} one"
                yield Misreading(
                    "scale", f"{said}: a tile of {size * parts.group} columns", of_one(size, which)
                )


def _exchanged(p: BlockParts) -> BlockParts:
    rows, groups = p.scale.shape
    return replace(p, scale=p.scale.reshape(groups, rows).T)


def _minima(parts: BlockParts) -> Iterator[Misreading]:
    def changed(change: Callable[[Array], Array]) -> Callable[[BlockParts], BlockParts]:
        return lambda p: replace(p, minimum=None if p.minimum is None else change(p.minimum))

    yield Misreading("minimum", "the minimum of a group is not added", changed(np.zeros_like))
    yield Misreading("minimum", "the minimum of a group has the other sign", changed(np.negative))
    if parts.minimum is not None and parts.minimum.shape[1] > 1:
        for by, whose in ((-1, "next"), (1, "previous")):
            said = f"each group has the minimum of the {whose} one"
            yield Misreading("minimum", said, changed(partial(np.roll, shift=by, axis=1)))
    said = f"integers are read less {len(parts.meaning) // 2}, beside the minimum"
    half = len(parts.meaning) // 2
    yield Misreading("minimum", said, lambda p: replace(p, meaning=p.meaning - half))


def _orders(parts: BlockParts) -> Iterator[Misreading]:
    """Integers of a block in another order; scales stay where they are."""
    width = parts.integers.shape[1]
    for size, taken, sentence in block_orders():
        if width % size == 0:
            yield Misreading("order", sentence, _in_order(size, taken))
            if parts.bits in LOW_BITS:
                name = "fifth bits" if parts.bits == 5 else "high bits"
                yield Misreading("bits", f"{name} alone: {sentence}", _high_in_order(size, taken))


def block_orders() -> Iterator[tuple[int, Array, str]]:
    """Orders that integers are read in: of how many, from which place each is taken, a clause."""
    for size in (32, 64, 256):
        numbers = np.arange(size)
        halves = numbers.reshape(2, -1)
        said = f"of each {size} integers"
        turned = halves.T.ravel()
        yield size, turned, f"{said} the low and the high half of a byte are taken as neighbours"
        yield size, np.argsort(turned), f"{said} neighbours are taken as low and high halves of a byte"
        yield size, halves[::-1].ravel(), f"{said} the high half of each byte comes first"
        yield size, halves[::-1].T.ravel(), f"{said} halves of a byte are neighbours, the high one first"
        yield size, numbers[::-1], f"{said} the last comes first"
        if size > 32:
            yield size, numbers.reshape(-1, size // 4).T.ravel(), f"{said} four lie in a byte's turn"
    pairs = np.arange(32).reshape(-1, 2)[:, ::-1].ravel()
    yield 32, pairs, "the integers of each pair are exchanged"
    awq = np.asarray(AWQ)
    yield 8, awq, "of each eight integers those in even places come first, as AWQ packs them"
    yield 8, np.argsort(awq), "of each eight integers AWQ's order is undone"
    yield 8, np.arange(8)[::-1], "of each eight integers the last comes first"


def _high_in_order(size: int, taken: Array) -> Callable[[BlockParts], BlockParts]:
    """The bits that lie apart from the rest of each integer in another order."""

    def read(p: BlockParts) -> BlockParts:
        low = LOW_BITS[p.bits]
        high = p.integers >> low << low
        moved = high.reshape(len(high), -1, size)[:, :, taken].reshape(high.shape)
        return replace(p, integers=p.integers - high + moved)

    return read


def _in_order(size: int, taken: Array) -> Callable[[BlockParts], BlockParts]:
    def read(p: BlockParts) -> BlockParts:
        blocks = p.integers.reshape(len(p.integers), -1, size)
        return replace(p, integers=blocks[:, :, taken].reshape(p.integers.shape))

    return read
