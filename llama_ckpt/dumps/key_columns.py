"""Which row's key each column of a call's scores or probabilities is.

Where the dump declares `slots`, a column is a slot of the cache. Else engines write them in the order in
which keys lie in their cache: those of the sequence, of all sequences, or of the whole line of a padded
batch; or a column for each row of the file. The number of columns tells which, and where several have as
many, the one by which least goes to keys that a row should not see: that reading is in the program's favour,
and what it gives to others in each of them is wrong by any. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.calls import RunTable

__all__ = ["NOTHING", "Shown", "columns_of"]

NOTHING = -1
"""A column of no row's key: a slot that is empty."""

SAME = 0.02
"""Relative error of a column of scores below which it is taken for that of a key."""

MOST = 1 << 24
"""Scores of more columns times rows of the file are not compared."""


@dataclass(frozen=True)
class Shown:
    """What a call's rows of one sequence show of their keys.

    Attributes:
        probs, scores: `[rows, heads, n_keys]`; None where they were not recorded.
        products: of the queries with the key of each row of the file, `[rows, heads, n]`, NaN for rows that
            were not recorded.
    """

    probs: NDArray[Any] | None = None
    scores: NDArray[Any] | None = None
    products: NDArray[Any] | None = None


def columns_of(
    table: RunTable,
    call: int,
    sequence: int,
    n_keys: int,
    shown: Shown | None = None,
    *,
    stacked: bool = False,
) -> tuple[int, ...]:
    """For each of `n_keys` columns the row of the file whose key it is, or NOTHING.

    Args:
        shown: what tells readings apart. stacked: the calls' rows lie in one tensor, so that those of a call
            with fewer keys end in zeros.
    """
    if table.slots is not None:
        return _by_slot(table, call, n_keys)
    shown = shown or Shown()
    live = table.cached[call].live.get(sequence, ())
    right = list(_of_length(table, call, sequence, n_keys, stacked))
    if len(right) > 1 and shown.probs is not None:
        given = np.nan_to_num(np.abs(shown.probs.astype(np.float64)), nan=1.0).sum(axis=(0, 1))
        right.sort(key=lambda one: float(given[~np.isin(one, live)].sum()))
    errors = _column_errors(shown)
    if errors is None:
        return right[0]
    best = max(right, key=lambda one: _matched(one, errors))
    until = [row for row in range(len(table.calls)) if table.calls[row] <= call]
    return _mended(best, errors, until, live, shown.probs)


def _of_length(
    table: RunTable, call: int, sequence: int, n_keys: int, stacked: bool
) -> Iterator[tuple[int, ...]]:
    """The readings that have so many columns, or fewer and empty ones."""
    live = table.cached[call].live.get(sequence, ())
    found = list(dict.fromkeys(_readings(table, call, sequence)))
    exact = [one for one in found if len(one) == n_keys]
    padded = [(*one, *[NOTHING] * (n_keys - len(one))) for one in found if len(one) < n_keys]
    if stacked and len(table.numbers) > 1:
        yield from padded
    yield from exact
    if not exact and not (stacked and padded):
        # Fewer than there are: whoever looks at the numbers says so.
        yield from padded or [tuple(live[:n_keys])]


def _column_errors(shown: Shown) -> NDArray[np.float64] | None:
    """How far each column of scores is from the products with each row's key, `[n_keys, n]`."""
    if shown.scores is None or shown.products is None:
        return None
    if (
        shown.scores.shape[-1] * shown.products.size > MOST
        or shown.scores.shape[1] != shown.products.shape[1]
    ):
        return None
    x, y = (np.asarray(one, np.float64).reshape(-1, one.shape[-1]) for one in (shown.scores, shown.products))
    seen = np.isfinite(x)
    x = np.where(seen, x, 0.0)
    weight, there = seen.astype(np.float64), np.isfinite(y)
    y = np.where(there, y, 0.0)
    # ||x - y||² over what is finite, column by column; a masked score is no number.
    square = (x * x).sum(0)[:, None] + weight.T @ (y * y) - 2 * (x.T @ y)
    size = weight.T @ (y * y)
    with np.errstate(all="ignore"):
        error = np.sqrt(np.maximum(square, 0.0) / size)
    error[:, ~there.all(axis=0)] = np.inf
    return np.where(np.isfinite(error), error, np.inf)


def _matched(columns: Sequence[int], errors: NDArray[np.float64]) -> int:
    return sum(key != NOTHING and errors[column, key] < SAME for column, key in enumerate(columns))


def _mended(
    columns: Sequence[int],
    errors: NDArray[np.float64],
    until: Sequence[int],
    live: Sequence[int],
    probs: NDArray[Any] | None,
) -> tuple[int, ...]:
    """The reading with another row where another row's key gives a column, and its own does not.

    Where that row's key has its own column, this one is what it should be, and wrong.

    Rows with equal keys, as of sequences that begin alike, are told apart by nothing: of the columns that
    they give, the one that most goes to is the sequence's own.
    """
    made = [*columns, *[NOTHING] * (len(errors) - len(columns))]
    near = [[row for row in until if errors[column, row] < SAME] for column in range(len(made))]
    asked = [
        column
        for column, key in enumerate(made)
        if near[column] and (key == NOTHING or errors[column, key] >= 5 * SAME or len(near[column]) > 1)
    ]
    taken = {key for column, key in enumerate(made) if column not in asked}
    mass = np.zeros(len(made))
    if probs is not None:
        mass = np.nan_to_num(np.abs(probs.astype(np.float64)), nan=0.0).sum(axis=(0, 1))
    for column in sorted(asked, key=lambda column: -mass[column]):
        claimed = made[column]
        made[column] = min(
            near[column],
            key=lambda row: (row in taken, row not in live, row != claimed, float(errors[column, row])),
        )
        if made[column] in taken and claimed not in taken and claimed != NOTHING:
            made[column] = claimed  # no order has a row's key twice: another key was written over this one
        taken.add(made[column])
    return tuple(made)


def _readings(table: RunTable, call: int, sequence: int) -> Iterator[tuple[int, ...]]:
    """The orders in which keys may lie, most likely first."""
    cached = table.cached[call]
    yield cached.live.get(sequence, ())
    until = [row for row in range(len(table.calls)) if table.calls[row] <= call]
    gone = {row for rows in cached.gone.values() for row in rows}
    line = [row for row in until if table.sequences[row] == sequence]
    yield tuple(row for row in line if row not in gone)  # with the padding of its line
    everyone = {row for rows in cached.live.values() for row in rows}
    yield tuple(row for row in until if row in everyone)
    yield cached.cells
    yield tuple(row for row in until if row not in gone)
    yield tuple(line)
    yield tuple(until)
    yield tuple(range(len(table.calls)))


def _by_slot(table: RunTable, call: int, n_keys: int) -> tuple[int, ...]:
    slots: Sequence[int] = table.slots or ()
    columns = [NOTHING] * n_keys
    for row, slot in enumerate(slots):
        if table.calls[row] <= call and 0 <= slot < n_keys:
            columns[slot] = row  # the last to come is what lies there
    return tuple(columns)
