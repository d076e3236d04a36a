"""From a mask, ids of sequences or positions to the sequence of each row and its padding; numpy only.

Everything that programs are handed comes to one plain form: for each row a number of its sequence, and
whether it is padding. A mask that is not of sequences, each seen by itself and backwards alone, has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rows", "rows_by_mask", "rows_by_positions", "rows_by_sequence"]


class Rows(NamedTuple):
    """What is known of each row.

    Attributes:
        sequences: a number for each; padding: 1 for each that is padding, else 0.
    """

    sequences: tuple[int, ...]
    padding: tuple[int, ...]


def rows_by_sequence(ids: NDArray[Any]) -> Rows | None:
    """By ids of sequences `[n]`, negative ones for padding; None for one sequence without padding."""
    return _plain(ids, ids < 0)


def rows_by_positions(positions: Sequence[int]) -> Rows | None:
    """By positions alone: where they begin anew, another sequence does."""
    anew = np.diff(np.asarray(positions, np.int64), prepend=-1) <= 0
    numbers = np.cumsum(anew)
    return _plain(numbers - numbers[:1].sum(), np.zeros(len(numbers), bool))


def rows_by_mask(mask: NDArray[Any], n: int) -> tuple[Rows | None, str | None]:
    """By a mask as attention takes it, and a sentence where it is none of sequences.

    Args:
        mask: `[…, n]`, 1 for a token and 0 for padding, or numbers of sequences from 1 on; or `[…, n, keys]`,
            true where a row may look, or 0.0 there and very negative elsewhere.
    """
    other = (
        f"the module was handed a mask of shape {list(mask.shape)} that is none of sequences: not declared"
    )
    if mask.shape[-1:] == (n,) and mask.size == n:
        flat = mask.reshape(n)
        if mask.dtype.kind == "f" and (flat < 0).any():
            flat = flat >= 0
        return _plain(np.where(flat > 0, flat, 0).astype(np.int64) - (np.max(flat) > 0), flat <= 0), None
    if mask.ndim < 2 or mask.shape[-2] != n or mask.shape[-1] < n:
        return None, other
    all_heads = mask.reshape(-1, *mask.shape[-2:])[:, :, :n]
    seen = all_heads >= 0 if mask.dtype.kind == "f" and (all_heads <= 0).all() else all_heads > 0
    if (seen != seen[:1]).any():
        return None, other
    rows = _by_visible(seen[0])
    return rows, None if rows is not None or _is_causal(seen[0]) else other


def _is_causal(seen: NDArray[np.bool_]) -> bool:
    return bool((seen == np.tril(np.ones_like(seen))).all())


def _by_visible(seen: NDArray[np.bool_]) -> Rows | None:
    """A row's sequence begins with the first row that it sees; what no row but padding sees is padding."""
    n = len(seen)
    if _is_causal(seen):
        return None
    order = np.tril(np.ones((n, n), bool))
    # Padding sees nothing, or everything: a row without any key gives NaN, so some are let see all.
    real = np.logical_and(seen.any(1), ~(seen & ~order).any(1))
    first = np.where(real, seen.argmax(1), -1)
    wanted = order & (first[:, None] == first[None]) & real[None]
    if not real.any() or (seen[real] != wanted[real]).any():
        return None
    return _plain(np.searchsorted(np.unique(first[real]), first), np.logical_not(real))


def _plain(numbers: NDArray[Any], padding: NDArray[np.bool_]) -> Rows | None:
    """None where there is nothing to say."""
    kept = numbers[~padding]
    if not padding.any() and (kept == kept[:1]).all():
        return None
    numbers = np.where(padding, -1, numbers)
    return Rows(tuple(int(i) for i in numbers), tuple(int(i) for i in padding))
