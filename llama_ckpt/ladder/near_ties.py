"""Which tokens of a recording are not judged, since a mixture's router may choose another way there.

A token whose choice is that near is not judged from there on in its block; in a whole run
nor is what read it: in later blocks every token from it on. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from llama_ckpt.judging.near_ties import AFTER_CHOICE, Rows, seen_by
from llama_ckpt.points import split_name

__all__ = ["NearTies"]


@dataclass(frozen=True)
class NearTies:
    """The near ties of one recording, found when they are asked for.

    Attributes:
        n_layers: of the model.
        positions: of the tokens.
        own: of a block, by what was recorded of its inputs.
        run: of a block, by the exact run; None where that was not kept.
    """

    n_layers: int
    positions: tuple[int, ...]
    own: Callable[[int], Rows]
    run: Callable[[int], Rows | None]

    def unjudged(self, name: str, error_kind: str) -> Rows:
        """The tokens that are not judged at a point, `[n]`."""
        block, point = split_name(name)
        after = point in AFTER_CHOICE
        if error_kind == "own":
            if not after or block is None:
                return np.zeros(len(self.positions), bool)
            ties = self.run(block) if point == "out" else self.own(block)  # a block's case runs all of it
            return np.zeros(len(self.positions), bool) if ties is None else ties
        if block is None:
            block = 0 if point == "embd" else self.n_layers
        before = self._spread(block)
        ties = self.run(block) if after else None
        return before if ties is None else before | ties

    @cache  # noqa: B019 - lives as long as its judge does
    def _spread(self, block: int) -> Rows:
        """The tokens that read another's near tie before this block."""
        read = np.zeros(len(self.positions), bool)
        for earlier in range(block):
            ties = self.run(earlier)
            if ties is not None and ties.any():
                read |= seen_by(ties, self.positions)
        return read
