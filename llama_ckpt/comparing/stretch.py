"""A stretch of whole blocks, from what was recorded to a tensor that is off, run by any oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.formats import rounded
from llama_ckpt.comparing.block_run import MATRICES
from llama_ckpt.judging.limits import Limit
from llama_ckpt.oracle.patched_oracle import PatchedOracle
from llama_ckpt.points import split_name

__all__ = ["Stretch"]

Array: TypeAlias = NDArray[Any]

BEGINNING, LONG = 2, 6
"""What an arithmetic costs over the first blocks of a long stretch tells what it costs over all of them."""


@dataclass(frozen=True)
class Stretch:
    """From what was recorded, over whole blocks, to a tensor that is off.

    Attributes:
        name: the tensor's full name; x: theirs.
        start: what goes into the first block, `[n, width]`; first: which that is.
        embedded: whether `start` is rows of the table, which are rounded too.
        weights, config, positions: the model's and the prompt's.
        limit: what float32 may leave over such a stretch.
        last: x is the last token's row alone.
    """

    name: str
    x: Array
    start: Array
    first: int
    embedded: bool
    weights: Any
    config: Any
    positions: NDArray[np.int64]
    limit: Limit
    last: bool = False

    @property
    def until(self) -> int:
        """The first block that is not run."""
        block = split_name(self.name)[0]
        return int(self.config.n_layers) if block is None else block + 1

    @property
    def middle(self) -> int:
        """Before this block it is looked at what an arithmetic costs so far; the first of a short stretch."""
        return self.first + (BEGINNING if self.until - self.first >= LONG else 0)

    def theirs(self, rows: int | None = None) -> Array:
        """Theirs, or its first rows; of scores and probabilities as many keys, since no later one is seen."""
        x = np.asarray(self.x[:rows], np.float64)
        return x[..., :rows] if split_name(self.name)[1] in MATRICES else x

    def begin(self, by: PatchedOracle, embeddings: str = "float32", rows: int | None = None) -> Array:
        """What goes into the block `middle`, of the first rows or of all: `[rows, width]`."""
        x, at = np.asarray(self.start[:rows], np.float64), self.positions[:rows]
        if self.embedded:
            x = rounded(x, embeddings)
        for number in range(self.first, self.middle):
            x = by.block(x, self.weights.blocks[number], config=self.config, positions=at)
        return x

    def run(self, by: PatchedOracle) -> Array:
        """The tensor as an oracle makes it: `[n, ...]`."""
        return self.end(by, self.begin(by))

    def end(self, by: PatchedOracle, x: Array) -> Array:
        """The tensor as an oracle makes it of what `begin` gives: `[rows, ...]`."""
        block, point = split_name(self.name)
        at = self.positions[: len(x)]
        seen: dict[str, Array] = {}
        for number in range(self.middle, self.until):
            here = number == block and point != "out"
            tap = {"tap": seen.__setitem__} if here else {}
            x = by.block(x, self.weights.blocks[number], config=self.config, positions=at, **tap)
        if block is not None:
            return seen[point] if point in seen else x
        x = x[-1:] if self.last else x
        made: Array = by.output_logits(x, self.weights, config=self.config, tap=seen.__setitem__)
        return made if point == "logits" else seen[point]
