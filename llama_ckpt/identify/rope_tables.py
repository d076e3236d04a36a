"""RoPE's numbers rounded on the way: positions, frequencies, angles, the table, in any combination.

A rounded table does not keep lengths, so that no angle explains it; each combination is made and compared.
numpy only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.rounded import FORMATS
from llama_ckpt.identify.turns import Turns, turned
from llama_ckpt.listing import listed

__all__ = ["Table", "rounded_tables"]

Array: TypeAlias = NDArray[Any]

STEPS = ("positions", "frequencies", "angles", "table of cosines and sines")
"""What is rounded, in the order in which it is made."""

ROWS = 48
"""So many rows are looked at first."""

NEAR = 0.5
"""A combination is tried whole where it leaves less than this share of the error in these rows."""


@dataclass(frozen=True)
class Table:
    """Cosines and sines `[n, pairs]`, and what was rounded to get them."""

    words: str
    cos: Array
    sin: Array
    steps: tuple[str, ...]
    dtype: str


def rounded_tables(turns: Turns, positions: Array, frequencies: Array) -> Iterator[Table]:
    """The combinations that come near in a few rows."""
    error = _row_errors(turns, np.asarray(turns.one.o, np.float64))
    rows = np.sort(np.argsort(error)[-ROWS:])
    before, after = (
        turns.before[rows][:, turns.heads],
        np.asarray(turns.one.x, np.float64)[rows][:, turns.heads],
    )
    right = np.linalg.norm(after - np.asarray(turns.one.o, np.float64)[rows][:, turns.heads])
    for dtype, rounded in FORMATS.items():
        for n in range(1, len(STEPS) + 1):
            for steps in itertools.combinations(STEPS, n):
                cos, sin = _table(positions[rows], frequencies, steps, rounded)
                left = np.linalg.norm(after - turned(before, turns.layout, cos, sin))
                if left < NEAR * right:
                    whole = _table(positions, frequencies, steps, rounded)
                    yield Table(f"RoPE's {listed(steps)} are rounded to {dtype}", *whole, steps, dtype)


def _row_errors(turns: Turns, o: Array) -> Array:
    off = np.asarray(turns.one.x, np.float64) - o
    return np.asarray(np.linalg.norm(off.reshape(len(off), -1), axis=1))


def _table(
    positions: Array, frequencies: Array, steps: tuple[str, ...], rounded: Callable[[Array], Array]
) -> tuple[Array, Array]:
    def kept(x: Array, step: str) -> Array:
        return rounded(np.asarray(x, np.float64)) if step in steps else np.asarray(x, np.float64)

    at, f = kept(positions, STEPS[0]), kept(frequencies, STEPS[1])
    angles = kept(at[:, None] * f, STEPS[2])
    return kept(np.cos(angles), STEPS[3]), kept(np.sin(angles), STEPS[3])
