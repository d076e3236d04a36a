"""What may happen in any operator: an overflow, a tile, memory that nobody wrote, one element.

numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.formats import FORMATS, UNROUNDED, block_of, rounded
from llama_ckpt.identify.operands import MATRIX_OF, right_of, tensors
from llama_ckpt.identify.overflow import overflows
from llama_ckpt.identify.places import Place, elements_off, place_of
from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.identify.rounded import DIRECTED, DROPS, one_way
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.matching import leaves_at_most

__all__ = ["any_guesses"]

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

MOST = 1 << 22
"""Elements of a tensor that is looked at."""

MOST_ROUNDED = 1 << 19
"""Elements of one that is rounded in all ways."""

FEW = 0.5
"""Up to this share of a tensor is a region; of more the operator is wrong, not a place."""

FAR = 30.0
"""What is so many times larger than anything around it comes from no product of these inputs."""

FEW_ROWS = 16
"""So many rows tell of most formats that it was not these."""

ROUNDED = 0.3
"""A tensor that is further off than this, in parts of itself, is not rounded but wrong."""

TILES = (256, 128, 64, 32, 16, 8, 4)


def any_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses for any point."""
    one = asked.first
    x = np.asarray(one.x)
    if x.shape != np.shape(one.o) or x.dtype.kind in "iub" or not 0 < x.size <= MOST:
        return
    if not np.isfinite(x).all():
        yield from overflows(asked)
        return
    yield from _of_all(asked, one)
    off = elements_off(one.x, one.o, one.limit, one.mask)
    if off.any() and off.mean() <= FEW and off.ndim > 1:
        yield from _in_a_region(asked, one, _region(off))


def _guess(asked: Asked, p: Array, kind: str, sentence: str, numbers: int, place: Place, code: str) -> Guess:
    made = tensors(asked, {asked.point: p})
    made.setdefault(asked.name, p)
    return Guess(f"any.{kind}", f"{asked.point}: {sentence}", made, numbers, place, code=code, part=False)


def _of_all(asked: Asked, one: Evidence) -> Iterator[Guess]:
    """Bounds, and roundings of what came out."""
    x, o = asked.x, asked.o
    bound = float(max(x.max(), -x.min()))
    is_beyond = max(o.max(), -o.min()) > bound * (1 + 1e-6)
    if bound > 0 and is_beyond and np.sum(np.abs(x) >= bound * (1 - 1e-6)) >= 2:
        beyond = np.abs(o) > bound * (1 + 1e-6)
        said = f"what is beyond {bound:.6g} is held at it"
        place = place_of(beyond, one.name)
        yield _guess(asked, np.clip(o, -bound, bound), "bounded", said, 1, place, "a clamp")
    if x.size > MOST_ROUNDED or not _is_near(x, o) or asked.point in ("ffn_inp", "out"):
        return
    yield from _one_way(asked)
    if asked.point in MATRIX_OF:
        return  # of products roundings are tried beside those of their inputs
    fits = []
    most = 2 * leaves_at_most(one.limit) * float(np.linalg.norm(o))
    few = slice(None, FEW_ROWS if x.ndim > 1 else None)  # what these leave is a part of what all leave
    for name in FORMATS:
        if name in UNROUNDED or o.shape[-1] % block_of(name):
            continue
        by_rows = "per tensor" not in name
        if by_rows and np.linalg.norm(x[few] - rounded(o[few], name)) > most:
            continue
        p = rounded(o, name)
        left = float(np.linalg.norm(x - p))
        if left <= most:
            fits.append((left, name, p))
    fits.sort(key=lambda fit: fit[0])
    if fits:
        others = ", ".join(name for _, name, _ in fits[1:])
        said = f"it is rounded to {fits[0][1]}" + (f" (or, alike here, to {others})" if others else "")
        yield _guess(asked, fits[0][2], "rounded", said, 1, Place(), "the dtype of this tensor")


def _one_way(asked: Asked) -> Iterator[Guess]:
    """Numbers that are not rounded to the nearest: most of them are exactly what is predicted."""
    o = right_of(asked)
    for said in one_way(asked.x, o):
        guess = _guess(asked, DIRECTED[said][1](o), "one_way", f"it is {said}", 1, Place(), DROPS)
        yield replace(guess, exact=True)


def _is_near(x: Array, o: Array) -> bool:
    return float(np.linalg.norm(x - o)) <= ROUNDED * float(np.linalg.norm(o))


def _region(off: Mask) -> Mask:
    """The rows and places that are off, all pairs of them: with what is right there by chance."""
    flat = off.reshape(len(off), -1)
    whole = np.logical_and.outer(flat.any(axis=1), flat.any(axis=0))
    region: Mask = whole.reshape(off.shape)
    return region


def _in_a_region(asked: Asked, one: Evidence, region: Mask) -> Iterator[Guess]:
    """What stands in a part of the tensor where the rest is right."""
    x, o = asked.x, asked.o
    place = place_of(region, one.name)
    where = place.said() or "all of it"
    tile = _tile(region)
    of_a_tile = f": a tile of {tile}" if tile else ""
    there = x[region]
    if region.sum() == 1:
        said = f"one element is off, {where}: {there[0]:.6g} for {o[region][0]:.6g}"
        yield _guess(asked, np.where(region, x, o), "element", said, 1, place, "")
        return
    numbers = 2 * sum(len(part) for part in place.parts.values())
    if np.ptp(there) == 0:
        value = "zero" if there[0] == 0 else f"{there[0]:.6g}"
        several = tile or any(last > first for runs in place.parts.values() for first, last in runs)
        said = f"{where} {'stay' if several else 'stays'} {value}"
        said += f"{of_a_tile} is not computed" if tile else ""
        yield _guess(asked, np.where(region, there[0], o), "constant", said, numbers, place, EDGE)
        return
    yield from _stale(asked, region, place, where)
    largest = float(np.abs(o).max()) or 1.0
    if np.abs(there).max() > FAR * largest or np.abs(there).max() < 1e-30:
        said = f"{where} hold numbers up to {np.abs(there).max():.3g}, where {largest:.3g} is the largest"
        said += f"{of_a_tile}: memory that nobody wrote, or beyond the end"
        p = np.where(region, x, o)
        yield _guess(asked, p, "unwritten", said, int(region.sum()), place, EDGE)


EDGE = "the edge of a kernel's tiles, or a buffer that is not written whole"


def _tile(region: Mask) -> int:
    """The size of a tile that the places of a region are one of, or the last part of one; 0 for none."""
    flat = region.reshape(len(region), -1)
    for axis in (0, 1):
        marked = np.flatnonzero(flat.any(axis=axis))
        n = flat.shape[1 - axis]
        first, count = int(marked[0]), len(marked)
        if count == n or int(marked[-1]) - first + 1 != count:
            continue
        whole = [tile for tile in TILES if first % tile == 0 and count == tile]
        cut = [tile for tile in TILES if first % tile == 0 and first + count == n and n % tile == count]
        if whole or cut:
            return (whole or cut)[0]
    return 0


def _stale(asked: Asked, region: Mask, place: Place, where: str) -> Iterator[Guess]:
    """What belongs to other rows or other places of the same tensor."""
    x, o = asked.x, asked.o
    flat_x, flat_o = x.reshape(len(x), -1), o.reshape(len(o), -1)
    marked = region.reshape(flat_x.shape)
    for axis, noun in ((0, "rows"), (1, "places")):
        n = flat_x.shape[axis]
        if n < 2:
            continue
        by = _moved_by(flat_x, flat_o, marked, axis)
        if by is None:
            continue
        p = np.where(marked, np.roll(flat_o, by, axis=axis), flat_o).reshape(x.shape)
        said = f"{where} hold what belongs {by} {noun} before"
        yield _guess(asked, p, "stale", said, 3, place, "a buffer that is written too early or read too late")


def _moved_by(x: Array, o: Array, marked: Mask, axis: int) -> int | None:
    """By how many rows or places what stands in the marked ones is moved; None where it is not."""
    n = x.shape[axis]
    size = float(np.linalg.norm(x[marked])) or 1.0
    for by in (one for one in range(1, min(n, 257))):
        rolled = np.roll(o, by, axis=axis)
        if np.linalg.norm(x[marked] - rolled[marked]) < 1e-2 * size:
            return by
    return None
