"""Outputs that have the scales or the minima of other rows of their quantized matrix. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.operands import Product
from llama_ckpt.listing import some
from llama_ckpt.oracle.integer_blocks import BlockParts

__all__ = ["OtherRows", "other_rows_of"]

Array: TypeAlias = NDArray[Any]

MOST_ROWS = 4096
"""Outputs of a matrix whose scales are looked up."""

TOKENS = 8
"""Rows of the tensor that these are looked up by."""

TELLING = 16
"""So many outputs tell whether the others are worth to be looked up."""


@dataclass(frozen=True)
class OtherRows:
    """What was found.

    Attributes:
        kind: "minimum" or "scale".
        sentence: a clause.
        numbers: how many were read from the tensor.
        parts: the matrix as it was taken.
    """

    kind: str
    sentence: str
    numbers: int
    parts: BlockParts


def other_rows_of(product: Product, parts: BlockParts) -> OtherRows | None:
    """Scales, minima or both of other rows that give what came out; None where none do."""
    if len(parts.integers) > MOST_ROWS or len(product.a) < 2:  # one token fits any row nearly
        return None
    rows = np.unique(np.linspace(0, len(product.a) - 1, TOKENS).astype(np.int64))
    a, x = product.a[rows], product.x[rows]
    minimum = parts.minimum
    sums: Array | None = None

    def grouped(r: int) -> Array:
        """What output r has in each group before its scale, `[groups, t]`."""
        levels = parts.meaning[parts.integers[r]]
        return np.asarray((a * levels).reshape(len(a), -1, parts.group).sum(-1).T)

    def scaled(r: int) -> Array:
        """What output r would be with the scales of each row, `[of, t]`."""
        return np.asarray(parts.scale @ grouped(r))

    if minimum is not None:
        sums = minimum @ a.reshape(len(a), -1, parts.group).sum(-1).T  # [of, t]
        of_minima = sums
        taken = _looked_up(
            product, rows, lambda r: x[:, r] - parts.scale[r] @ grouped(r), lambda r: of_minima
        )
        if taken is not None:
            return _found("minimum", "minima", taken, replace(parts, minimum=minimum[taken]))
    taken = _looked_up(product, rows, lambda r: x[:, r] - (0.0 if sums is None else sums[r]), scaled)
    if taken is not None:
        return _found("scale", "scales", taken, replace(parts, scale=parts.scale[taken]))
    if sums is None or minimum is None:
        return None
    both = sums
    taken = _looked_up(product, rows, lambda r: x[:, r], lambda r: scaled(r) + both)
    if taken is None:
        return None
    return _found(
        "scale",
        "scales and minima",
        taken,
        replace(parts, scale=parts.scale[taken], minimum=minimum[taken]),
    )


def _looked_up(
    product: Product, rows: Array, target: Callable[[int], Array], made: Callable[[int], Array]
) -> NDArray[np.int64] | None:
    """For each output the row whose numbers give it, `[out]`; None where some output has none.

    Args:
        target: of an output, what is looked up, `[t]`. made: what each row would give there, `[of, t]`.
    """
    element = product.noise / np.sqrt(product.x.size)
    allowed = 8 * float(np.sqrt(len(rows))) * max(element, 1e-12)
    taken = np.arange(product.x.shape[1])
    few = taken[:: max(1, len(taken) // TELLING)].copy()
    for chosen in (few, np.setdiff1d(taken, few)):
        for r in chosen:
            far = np.linalg.norm(made(int(r)) - target(int(r)), axis=1)
            if far[r] <= allowed:
                continue
            taken[r] = int(far.argmin())
            if far[taken[r]] > allowed:
                return None
    return None if np.array_equal(taken, np.arange(len(taken))) else taken


def _found(kind: str, what: str, taken: Array, parts: BlockParts) -> OtherRows:
    """In words: by the order within a few outputs, where all of them repeat it."""
    n = len(taken)
    for size in (2, 4, 8, 16, 32, 64):
        if n % size or size == n:
            continue
        order = taken[:size]
        first = size * np.arange(n // size)[:, None]
        if order.max() < size and np.array_equal(taken.reshape(-1, size), order + first):
            said = f"of each {size} outputs the {what} are those of outputs {some(order.tolist(), 16)}"
            return OtherRows(kind, said, size, parts)
    moved = np.flatnonzero(taken != np.arange(n))
    few = ", ".join(f"output {j} those of {taken[j]}" for j in moved[:4])
    said = f"outputs have the {what} of others: {few}{', …' if len(moved) > 4 else ''}"
    return OtherRows(kind, said, len(moved), parts)
