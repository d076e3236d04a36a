"""A softmax that is made tile by tile, or part by part, and put together wrongly.

An online softmax keeps the largest score so far, the sum and the mixed values, and rescales both whenever a
tile brings a larger one; a split softmax weighs its parts by their sums and largest scores. What is forgotten
shows in the contexts alone, since such a program has no probabilities to record. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.attending import Attending
from llama_ckpt.identify.record import Guess

__all__ = ["tile_guesses"]

Array: TypeAlias = NDArray[Any]

TILES = (8, 16, 32, 64, 128, 256, 512)
"""Keys to a tile, as kernels have them; of short prompts every number is tried."""

EVERY = 128
"""Up to so many keys."""

PARTS = 16
"""Up to so many parts of all keys are tried."""

ROWS = 3
"""So many rows are looked at first."""

WAYS = {
    "sum": "the sum is not rescaled where a later one has a larger score",
    "values": "the mixed values are not rescaled where a later one has a larger score",
    "neither": "neither the sum nor the mixed values are rescaled where a later one has a larger score",
    "sums": "they are added up with the largest score of each taken off, and not made alike",
    "mean": "their results are averaged, and not weighed by their sums",
}
"""What may be wrong with the putting together of tiles, of what follows "the softmax is made in tiles"."""

CODE = "the factor exp(old largest - new largest) of an online softmax, or of its merge"


def tile_guesses(one: Attending, theirs: Array) -> Iterator[Guess]:
    """Guesses where the context is the first wrong tensor; theirs: `[heads, n, d]`."""
    if one.n < 2 or (one.visible != np.tril(np.ones_like(one.visible))).any():
        return
    values = one.v[one.reads]
    right = one.probs @ values
    off = np.linalg.norm(theirs - right, axis=(0, 2))
    wrong = np.flatnonzero(off > one.tolerance * np.linalg.norm(right, axis=(0, 2)))
    if not len(wrong) or not wrong[0]:
        return
    few = wrong[-ROWS:]
    most = one.tolerance * float(np.linalg.norm(theirs[:, few]))
    for words, starts in _tilings(one.n, int(wrong[0])):
        for way, said in WAYS.items():
            made = _mixed(one, few, starts, way) @ values
            if float(np.linalg.norm(made - theirs[:, few])) > most:
                continue
            context = one.context_of(_mixed(one, np.arange(one.n), starts, way))
            if float(np.linalg.norm(context - one.asked.x)) <= one.tolerance * float(np.linalg.norm(context)):
                sentence = f"the softmax is made in {words}, and {said}"
                parameters = {"starts": starts.tolist(), "way": way}
                yield Guess(
                    "attention.tiles",
                    sentence,
                    one.following(context=context),
                    2,
                    parameters=parameters,
                    code=CODE,
                )
                return


def _tilings(n: int, most: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Tiles of a size, up to `most` keys, since what one tile holds is right; then parts of all keys."""
    sizes = [*(size for size in TILES if size <= most), *range(1, min(most, EVERY) + 1)]
    for size in dict.fromkeys(sizes):
        yield f"tiles of {size} keys", np.arange(0, n, size)
    for parts in range(2, min(PARTS, n) + 1):
        edges = np.cumsum([0, *(len(part) for part in np.array_split(np.arange(n), parts)[:-1])])
        if edges[1] <= most:
            yield f"{parts} parts of all keys", edges


def _mixed(one: Attending, rows: NDArray[np.int64], starts: NDArray[np.int64], way: str) -> Array:
    """What each key counts for, `[heads, rows, keys]`."""
    scores = np.where(one.visible[rows], one.scaled[:, rows], -np.inf)
    tile = np.searchsorted(starts, np.arange(one.n), side="right") - 1
    largest = np.maximum.reduceat(scores, starts, axis=2)  # [heads, rows, tiles]
    seen = np.isfinite(largest)
    running = np.maximum.accumulate(largest, axis=2)
    e = np.exp(scores - np.where(seen, largest, 0.0)[..., tile])
    sums = np.add.reduceat(e, starts, axis=2)
    largest = np.where(seen, largest, -np.inf)
    once = np.exp(largest - running)  # as a tile comes in
    after = np.exp(largest - running[..., -1:])  # in the end
    if way == "mean":
        each = np.where(seen, 1 / np.where(seen, sums, 1.0), 0.0) / seen.sum(axis=2, keepdims=True)
        return np.asarray(e * each[..., tile])
    plain = np.where(seen, 1.0, 0.0)
    of_sum = {"sum": once, "values": after, "neither": once, "sums": plain}[way]
    of_values = {"sum": after, "values": once, "neither": once, "sums": plain}[way]
    return np.asarray(e * of_values[..., tile] / np.sum(sums * of_sum, axis=2, keepdims=True))
