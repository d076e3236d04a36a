"""Near ties of a mixture's router: where two right programs may choose different experts.

Two scores closer than rounding puts them are a coin flip, and after it the token goes through other
matrices. So a token whose choice is that near is not judged from there on in its block; in a whole run
nor is what read it: in later blocks every token from it on. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.points import split_name

__all__ = ["AFTER_CHOICE", "NearTies", "near"]

Rows: TypeAlias = NDArray[np.bool_]

AFTER_CHOICE = frozenset({"ffn_chosen", "ffn_weights", "ffn_expert_out", "ffn_out", "out"})
"""The points of a block that hang on the choice."""


def near(router: NDArray[np.float64], n_used: int, off: Any) -> Rows:
    """The tokens whose choice, or its order, may fall another way, `[n]`.

    Args:
        router: exact scores `[n, n_experts]`.
        n_used: how many are chosen.
        off: what a score may be off by, `[n]` or one number.
    """
    ranked = -np.sort(-router, axis=1)[:, : n_used + 1]
    if ranked.shape[1] < 2:
        return np.zeros(len(router), bool)
    return np.asarray(np.min(ranked[:, :-1] - ranked[:, 1:], axis=1) <= 2 * off)


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
                read |= np.asarray(self.positions) >= np.asarray(self.positions)[ties].min()
        return read
