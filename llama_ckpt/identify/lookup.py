"""Looking up outputs among the rows of several matrices: over all rows of the tensor each must be the same.

Where rounding leaves several to choose from, a row's own place counts first, then the one that goes on from
its neighbour's; an output that could be several rows otherwise is not known. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.operands import Product
from llama_ckpt.identify.sources import Source
from llama_ckpt.judging.matching import leaves_at_most

__all__ = ["nearest_columns"]

Array: TypeAlias = NDArray[Any]

MOST = 1 << 23
"""So many pairs of an output and a row are compared; of more, the neighbours in order of one row's values."""

NEIGHBOURS = 12
"""So many of them on either side."""


def nearest_columns(
    product: Product, off: Array, sources: Sequence[Source]
) -> tuple[Array, Array, NDArray[np.bool_]] | None:
    """For each output in `off`: which source, which row of it, and whether that is known.

    Args:
        off: numbers of outputs.
        sources: what they are looked up in.
    """
    allowed = _allowed(product)
    x = product.x[:, off] / allowed[:, None]
    made = np.concatenate([source.made for source in sources], axis=1) / allowed[:, None]
    which = np.concatenate([np.full(source.made.shape[1], i) for i, source in enumerate(sources)])
    row = np.concatenate([np.arange(source.made.shape[1]) for source in sources])
    if not (np.isfinite(x).all() and np.isfinite(made).all()):
        return None
    near = _candidates(x, made)
    found = np.full(len(off), -1)
    for i, candidates in enumerate(near):
        found[i] = _chosen(int(off[i]), candidates, which, row, found[i - 1] if i else -1)
    known = found >= 0
    return which[found], row[found], known


def _allowed(product: Product) -> Array:
    """What rounding may leave of an element of each row."""
    limit = product.limit
    element = limit.element_err if np.isfinite(limit.element_err) else 0.0
    rms = np.sqrt(np.mean(product.o**2, axis=1))
    return np.asarray(max(element, leaves_at_most(limit)) * np.where(rms > 0, rms, 1.0))


def _candidates(x: Array, made: Array) -> list[Array]:
    """For each output the rows that it may be, the nearest first."""
    if x.shape[1] * made.shape[1] * len(x) <= MOST:
        return _of_all(x, made)
    order = np.argsort(made[0], kind="stable")
    places = np.searchsorted(made[0][order], x[0])
    near = []
    for i, place in enumerate(places):
        few = order[max(0, place - NEIGHBOURS) : place + NEIGHBOURS]
        near.append(_within(x[:, i], made[:, few], few))
    return near


def _of_all(x: Array, made: Array) -> list[Array]:
    numbers = np.arange(made.shape[1])
    return [_within(x[:, i], made, numbers) for i in range(x.shape[1])]


def _within(x: Array, made: Array, numbers: Array) -> Array:
    """Those that are nearer than rounding leaves in every row, the nearest first."""
    far = np.abs(made - x[:, None]).max(axis=0)
    inside = np.flatnonzero(far <= 2.0)
    return np.asarray(numbers[inside[np.argsort(far[inside], kind="stable")]])


def _chosen(output: int, candidates: Array, which: Array, row: Array, before: int) -> int:
    if not len(candidates):
        return -1
    for one in candidates:
        if which[one] == 0 and row[one] == output:
            return int(one)
    if before >= 0:
        for one in candidates:
            if which[one] == which[before] and row[one] == row[before] + 1:
                return int(one)
    return int(candidates[0])
