"""Each column's part in a product's error, in cells of some columns, and what all runs of these explain.

The product is a sum over columns; a weight c on column k adds (c - 1) of that column's part. Parts of all
runs of cells come from prefix sums, so that every range is tried at the cost of one table. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["CELLS", "ColumnSums", "column_sums", "least_squares"]

Array: TypeAlias = NDArray[Any]

CELLS = 512
"""So many cells at most; of wider matrices a cell is several columns."""

EQUATIONS = 6144
"""So many elements of the product are looked at: of a large one some outputs, evenly spread."""


@dataclass(frozen=True, eq=False)
class ColumnSums:
    """The parts of cells of columns.

    Attributes:
        parts: `[equations, cells]`, what each cell adds to the looked-at elements.
        starts: `[cells]`, the first column of each.
        width: columns in all.
    """

    parts: Array
    starts: NDArray[np.int64]
    width: int

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """`[cells + 1]`, where cells begin and the last one ends."""
        return np.append(self.starts, self.width)

    @property
    def cell(self) -> int:
        """Columns in the first."""
        return int(self.edges[1])

    def spread(self, cells: Array) -> Array:
        """A number of each cell as one of each column, `[width]`."""
        return np.repeat(cells, np.diff(self.edges))

    @property
    def cells(self) -> int:
        """How many there are."""
        return len(self.starts)

    @cached_property
    def gram(self) -> Array:
        """`[cells, cells]`, the parts' inner products."""
        return np.asarray(self.parts.T @ self.parts)

    def ranges(self, target: Array) -> tuple[Array, Array]:
        """For all runs of cells first to last: their part's product with the target, and its square.

        Both `[cells + 1, cells + 1]`, at [first, last + 1].
        """
        with_target = np.concatenate([[0.0], np.cumsum(self.parts.T @ target)])
        prefix = np.zeros((self.cells + 1, self.cells + 1))
        prefix[1:, 1:] = self.gram.cumsum(0).cumsum(1)
        own = np.diag(prefix)
        return with_target[None, :] - with_target[:, None], own[None, :] + own[:, None] - 2 * prefix

    def solved(self, target: Array, groups: Array, noise: float) -> Array | None:
        """A number for each group of cells, by least squares; None where there are too few equations.

        Args:
            groups: `[cells]`, the number of the group that each cell belongs to.
            noise: what rounding may put into the target, as a norm.
        """
        n = int(groups.max()) + 1
        if 1.2 * n + 4 > len(target):
            return None
        summed = np.zeros((len(target), n))
        np.add.at(summed.T, groups, self.parts.T)
        solution = least_squares(summed, target)
        # What adds less than rounding leaves tells nothing of its number.
        tiny = np.linalg.norm(summed, axis=0) <= noise / np.sqrt(n)
        return np.where(tiny, 0.0, solution)


def least_squares(summed: Array, target: Array) -> Array:
    """By the normal equations, made good twice: a fraction of what a decomposition costs."""
    gram = summed.T @ summed
    try:
        solution = np.linalg.solve(gram, summed.T @ target)
        for _ in range(2):
            solution += np.linalg.solve(gram, summed.T @ (target - summed @ solution))
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(summed, target, rcond=1e-12)[0])
    return np.asarray(solution)


def column_sums(a: Array, w: Array, near: Iterable[int] = ()) -> tuple[ColumnSums, NDArray[np.bool_]]:
    """The parts of `a @ w.T`, and which outputs they are of.

    Args:
        a: `[n, in]`; w: `[out, in]`.
        near: columns about which each is a cell of its own, where others are taken together.
    """
    n, width = a.shape
    out = w.shape[0]
    cell = next(c for c in (1, 2, 4, 8, 16, 32, 64) if c * CELLS >= width or c == 64)
    starts = np.arange(0, width, cell)
    for column in near:
        starts = np.union1d(starts, np.arange(max(0, column - cell), min(width, column + cell)))
    chosen = np.zeros(out, np.bool_)
    chosen[np.unique(np.linspace(0, out - 1, max(1, EQUATIONS // n)).astype(np.int64))] = True
    products = a[:, None, :] * np.asarray(w)[chosen][None, :, :]
    parts = np.add.reduceat(products, starts, axis=2) if cell > 1 else products
    return ColumnSums(parts.reshape(-1, len(starts)), starts, width), chosen
