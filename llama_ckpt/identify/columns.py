"""Which columns of its matrix a product summed, and with which weight.

From the simplest on: one run of columns with one weight, one run alone, tiles, every so manyth column, and
where there are equations enough each column by itself. What comes out near a number that people write is
that number; the product with it decides. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.column_sums import ColumnSums, column_sums
from llama_ckpt.identify.offering import Change, Offer, columns_place, features_off, offered
from llama_ckpt.identify.operands import Product
from llama_ckpt.identify.places import ranges
from llama_ckpt.listing import listed, which

__all__ = ["NICE", "other_columns"]

Array: TypeAlias = NDArray[Any]

NICE = (0.0, 1.0, 2.0, -1.0, 3.0, 4.0, 0.5, 8.0, 0.25, 16.0)
"""Weights that a slip gives a column; 1 is the right one."""

TILES = (256, 128, 64, 32, 16, 8)
"""Columns that a kernel takes at a time."""

STRIDES = (2, 4, 8, 16, 32)
"""Lanes: every so manyth column."""

WORTH = 0.9
"""A run that explains less of the error's square is not looked at."""

LEFT_OUT = "the bounds of a loop over the sum, or of a kernel's tiles"
RANKS = "the all-reduce after a product that is cut over ranks"


def other_columns(product: Product) -> Iterator[Offer]:
    """What gives the columns other weights."""
    if product.a.shape[1] < 2 or not np.isfinite(product.x).all():
        return
    off = features_off(product)
    if not len(off):
        return
    found, in_all = False, 2 * len(off) > product.o.shape[1]
    for weights, numbers in _weights(product, off):
        if (weights == 1.0).all():
            continue
        p = (product.a * weights) @ np.asarray(product.w).T
        for offer in offered(product, p, _change(weights, numbers, in_all), part=numbers <= 3):
            found |= product.fits(offer.p)
            yield offer
        if found:
            return


def _weights(product: Product, off: Array) -> Iterator[tuple[Array, int]]:
    """Weights of the columns `[in]`, and how many numbers they took; the simplest first.

    Args:
        off: the outputs that are off; the others tell nothing of what was done to these.
    """
    w = np.asarray(product.w)[off]
    sums, chosen = column_sums(product.a, w)
    x, o = product.x[:, off][:, chosen].ravel(), product.o[:, off][:, chosen].ravel()
    error, noise = x - o, product.noise * float(np.sqrt(len(o) / product.o.size))
    for target, base in ((error, 1.0), (x, 0.0)):
        for weights, edges, numbers in _one_run(sums, target, base, noise):
            if sums.cell == 1:
                yield weights, numbers
                continue
            finer, _ = column_sums(product.a, w, near=edges)
            yield from ((one, n) for one, _, n in _one_run(finer, target, base, noise))
    for tile in dict.fromkeys([*TILES, *_parts_of(sums.width)]):
        if tile % sums.cell == 0 and sums.cell < tile < sums.width:
            yield from _by_groups(sums, error, sums.starts // tile, noise)
    for stride in STRIDES:
        if sums.cell == 1 and stride < sums.width:
            yield from _by_groups(sums, error, sums.starts % stride, noise)
    yield from _by_groups(sums, error, np.arange(sums.cells), noise)


def _parts_of(width: int) -> list[int]:
    """The columns of one of 2 to 16 ranks or heads."""
    return [width // n for n in (2, 3, 4, 6, 8, 12, 16) if width % n == 0]


def _one_run(
    sums: ColumnSums, target: Array, base: float, noise: float
) -> Iterator[tuple[Array, tuple[int, int], int]]:
    """One run of columns with a weight of its own, its ends, its numbers; the others have weight `base`."""
    inner, square = sums.ranges(target)
    whole = float(target @ target)
    for weight in (*(one for one in NICE if one != base), None):
        with np.errstate(all="ignore"):
            if weight is None:
                left = whole - np.where(square > 1e-14 * whole, inner**2 / square, 0.0)
            else:
                step = weight - base
                left = whole - 2 * step * inner + step * step * square
        left = np.where(np.triu(np.ones(left.shape, np.bool_), 1), left, np.inf)
        if not left.min() <= (1 - WORTH) * whole:  # nor where sums overflowed
            continue
        first, end = _roundest(sums, left, max(noise * noise, 1e-13 * whole))
        if weight is None:
            weight = base + float(inner[first, end] / square[first, end])
        edges = int(sums.edges[first]), int(sums.edges[end])
        weights = np.full(sums.width, base)
        weights[slice(*edges)] = weight
        yield weights, edges, 2 if weight in NICE else 3


def _roundest(sums: ColumnSums, left: Array, noise: float) -> tuple[int, int]:
    """The run that leaves least; of those that rounding cannot tell apart the one with the roundest ends."""
    among = np.argwhere(left <= left.min() + 2 * noise)[:200]

    def roundness(pair: Array) -> tuple[int, float]:
        first, end = int(pair[0]), int(pair[1])
        return -(_twos(first, sums) + _twos(end, sums)), float(left[first, end])

    first, end = min(among, key=roundness)
    return int(first), int(end)


def _twos(at: int, sums: ColumnSums) -> int:
    """How round a column's number is: by how many twos it can be divided; the ends are roundest."""
    column = int(sums.edges[at])
    if column in (0, sums.width):
        return 16
    return min((column & -column).bit_length() - 1, 8)


def _by_groups(sums: ColumnSums, error: Array, groups: Array, noise: float) -> Iterator[tuple[Array, int]]:
    solved = sums.solved(error, groups, noise)
    if solved is None:
        return
    fitted = 1.0 + solved[groups]
    left = error - sums.parts @ solved[groups]
    if left @ left > (1 - WORTH) * (error @ error):
        return
    nice = np.asarray(NICE)
    nearest = nice[np.abs(fitted[:, None] - nice).argmin(axis=1)]
    for cells in (nearest, fitted):
        yield sums.spread(cells), _numbers(cells, groups)


def _numbers(cells: Array, groups: Array) -> int:
    """A run or a pattern of groups is two numbers, each weight that nobody writes one more."""
    changed = np.unique(groups[cells != 1.0])
    odd = len({round(float(one), 6) for one in cells if one not in NICE})
    return 2 * max(1, len(ranges(changed))) + odd


def _change(weights: Array, numbers: int, in_all: bool) -> Change:
    """What is said of weights; in_all: whether most outputs are off, as all are without an all-reduce."""
    changed = np.flatnonzero(weights != 1.0)
    place = columns_place(changed, len(weights))
    parameters = {"columns": weights.tolist()}
    kept = np.flatnonzero(weights == 1.0)
    run = ranges(kept)
    if len(run) == 1 and not weights[changed].any():
        rank = _rank(int(kept[0]), len(kept), len(weights)) if in_all else ""
        if rank or len(kept) < len(weights) // 2:
            said = f"{which('column', kept, len(weights))} alone are summed, of {len(weights)}"
            said += rank
            code = RANKS if rank else LEFT_OUT
            return Change("product.one_part", said, numbers, parameters, code, columns=place)
    said = _said(weights, changed)
    code = RANKS if weights[changed].min() >= 2 else LEFT_OUT
    return Change("product.columns", said, numbers, parameters, code, columns=place)


def _rank(first: int, count: int, width: int) -> str:
    ranks = width // count
    if ranks < 2 or width % count or first % count or ranks > 64:
        return ""
    return f": the part of rank {first // count} of {ranks}, not added to the others'"


def _said(weights: Array, changed: Array) -> str:
    """Which columns have which weight."""
    n, parts = len(weights), []
    values = sorted({float(one) for one in weights[changed]}, key=lambda v: int(np.sum(weights == v)))
    if len(values) > 4:
        low, high = weights[changed].min(), weights[changed].max()
        return f"{which('column', changed, n)} of the sum have weights of their own, {low:.4g} to {high:.4g}"
    for value in values:
        columns = np.flatnonzero(weights == value)
        named, verb = which("column", columns, n), "is" if len(columns) == 1 else "are"
        if value == 0:
            parts.append(f"{named} of the sum {verb} left out{_tail(columns, n)}")
        else:
            parts.append(f"{named} of the sum {verb} {_times(value)}")
    return listed(parts)


def _tail(columns: Array, n: int) -> str:
    """Whether it is what stands behind the last whole tile."""
    if int(columns[-1]) != n - 1 or int(columns[0]) != n - len(columns):
        return ""
    tile = next((tile for tile in TILES if n % tile == len(columns)), 0)
    return f": the rest behind tiles of {tile}" if tile else ": the end of the row"


def _times(value: float) -> str:
    if value == 2:
        return "added twice"
    if value == -1:
        return "subtracted"
    return f"taken {value:.6g} times"
