"""A sum that goes on past the ends of its rows, into what follows them in memory.

A kernel's last tile reads a whole tile where less is left: the next row's first numbers, of activations and
of weights. How many is measured. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.column_sums import column_sums
from llama_ckpt.identify.offering import Change, Offer, offered
from llama_ckpt.identify.operands import Product

__all__ = ["past_the_rows"]

Array: TypeAlias = NDArray[Any]

FARTHEST = 255
"""Numbers past the end that are looked at: less than a tile."""

TILES = (256, 128, 64, 32, 16, 8, 4)


def past_the_rows(product: Product) -> Iterator[Offer]:
    """The sum with some numbers more."""
    if len(product.x) < 2 or not np.isfinite(product.x).all():
        return
    width = product.a.shape[1]
    most = min(FARTHEST, width)
    a, w = _following(product.a, most), _following(np.asarray(product.w), most)
    sums, chosen = column_sums(a, w)
    # Behind the last rows nobody knows what stands.
    target = product.error[:, chosen].ravel()
    inner, square = sums.ranges(target)
    left = float(target @ target) - 2 * inner[0, 1:] + square[0, 1:]
    if left.min() > 0.1 * float(target @ target):
        return
    end = int(sums.edges[1 + int(np.argmin(left))])
    tile = next((tile for tile in TILES if -width % tile == end), 0)
    of = f": the last tile of {tile} is read whole" if tile else ""
    said = f"each sum goes on for {end} numbers past the end of its rows, into the next ones{of}"
    p = product.o + a[:, :end] @ w[:, :end].T
    change = Change(
        "product.past_the_end", said, 1, {"numbers": end, "tile": tile}, "the mask of the last tile"
    )
    yield from offered(product, p, change)


def _following(rows: Array, most: int) -> Array:
    """What the next row begins with, zeros behind the last."""
    return np.concatenate([rows[1:, :most], np.zeros((1, most))])
