"""What rounding may come to as a gain or as a bias, where its errors point one way.

Rounding has no direction of its own: over n elements a gain or a bias shrinks with sqrt(n). But errors
are not always apart:

    a row's          a norm's root or a softmax's sum is rounded once, and all that it divides is off alike
    a column's       a norm's weight is rounded once, in half precision, for all tokens
    all elements     a constant, such as the scores' scale, is rounded once
    equal numbers    a query's or a key's that come again are rounded alike (`equal_numbers`)
    along a row      an error made before a product goes through weights that may share a direction
    columns alike    a vocabulary's untrained tokens have nearly the same weights, so their logits err alike
    rows alike       equal tokens are wrong alike; in half precision similar ones too, since a rounded weight
                     errs with every row that it multiplies

Here these are added up: the standard deviations of gain and bias as `metrics` defines them. numpy only.
"""

from __future__ import annotations

from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.spread import Spread

__all__ = [
    "Directions",
    "column_step",
    "columns_alike",
    "gain_and_bias",
    "most_equal",
    "rows_alike",
    "shortened",
]

Array: TypeAlias = NDArray[np.float64]

LOOKED_AT = 2048
"""Columns of a row that are compared with another row's, at most."""

ROWS_LOOKED_AT = 8
"""Rows that columns are compared in, at most."""

CLOSE = 1 / 8
"""Elements are alike that are apart by less than this share of what one of the row may be off."""

EQUAL = 1e-4
"""Of 1 less a squared cosine: rows that half precision hardly tells apart."""

SAME = 1e-9
"""Of 1 less a squared cosine: rows that float32 does not tell apart. Their numbers, of rows of norm 1, are
within its root of one another."""

PROJECTED = 32
"""Numbers that stand for a row where rows are compared: a cosine is known to 1/sqrt(32)."""


def gain_and_bias(o: Array, deviation: Array, spread: Spread, *, half: bool) -> tuple[float, float]:
    """The deviations of the gain and of the bias of a tensor.

    Args:
        o: the oracle's `[rows, columns]`, zero where not judged. deviation: of each element, the same.
        spread: where it comes from. half: the program rounds to half precision.
    """
    size = float(np.linalg.norm(o))
    if size == 0:
        return 0.0, 0.0
    seen = Directions(half)
    seen.add(o / size, deviation / size, spread, scale=size)
    return seen.gain_and_bias(1.0, o.size)


class Directions:
    """What gains and biases add up to while the rows of a tensor are gone through.

    Args:
        half: the program rounds to half precision.
    """

    def __init__(self, half: bool) -> None:
        self.half = half
        self._gains: list[Array] = []
        self._biases: list[Array] = []
        self._short: list[Array] = []
        self._columns: tuple[float, float] = (0.0, 0.0)
        self._everywhere, self._sum = 0.0, 0.0
        self._equal = np.zeros(2)

    def add(
        self,
        o: Array,
        off: Array,
        spread: Spread,
        *,
        scale: float = 1.0,
        norms: Array | None = None,
        some: Array | None = None,
    ) -> None:
        """Add some rows, the next ones.

        Args:
            o: the oracle's, off: the deviation of each element, spread: theirs.
            scale: what o and off were divided by, for what the spread says of them besides.
            norms: of the oracle's rows, where they are known.
            some: of these rows what is compared with other rows, where they are not whole.
        """
        rows = np.einsum("rc,rc->r", o, o) if norms is None else norms**2
        if spread.aligned:
            squares = np.einsum("rc,rc->r", off, off)
            gains, biases = squares * rows, squares * o.shape[1]
        elif spread.sums is not None:
            gains, biases = (spread.sums.along / scale**2) ** 2, (spread.sums.plain / scale) ** 2
        else:
            both, alone = off * o, off
            if (groups := columns_alike(o, off)) is not None:
                both, alone = (_added_up(each, groups) for each in (both, off))
            gains, biases = np.einsum("rc,rc->r", both, both), np.einsum("rc,rc->r", alone, alone)
        sums = o.sum(axis=1) if spread.shared is not None or spread.everywhere else np.zeros(len(o))
        if spread.shared is not None:
            shared = np.broadcast_to(spread.shared, (len(o), 1))[:, 0] ** 2
            gains, biases = gains + shared * rows**2, biases + shared * sums**2
        self._gains.append(gains)
        self._biases.append(biases)
        self._short.append(shortened(compared(o) if some is None else some))
        if spread.columns:  # of norms alone, whose rows are all at hand
            gain = float(np.sum(np.einsum("rc,rc->c", o, o) ** 2))
            self._columns = spread.columns**2 * gain, spread.columns**2 * float(np.sum(o.sum(axis=0) ** 2))
        self._everywhere = max(self._everywhere, spread.everywhere)
        self._sum += float(sums.sum())
        self._equal += np.sqrt(spread.equal) / (scale**2, scale)

    def gain_and_bias(self, norm: float, size: int) -> tuple[float, float]:
        """What it comes to, of a tensor whose norm is `norm` and which has `size` elements."""
        alike = rows_alike(np.concatenate(self._short), half=self.half)
        gain = float(np.sum(alike * np.concatenate(self._gains))) + self._columns[0] + self._equal[0] ** 2
        bias = float(np.sum(alike * np.concatenate(self._biases))) + self._columns[1] + self._equal[1] ** 2
        gain = gain / norm**4 + self._everywhere**2
        bias = (bias + (self._everywhere * self._sum) ** 2) / norm**2
        return gain**0.5, (bias / max(size, 1)) ** 0.5


def columns_alike(o: Array, off: Array) -> NDArray[np.int64] | None:
    """For each column the number of its group, whose elements are wrong alike; None where each stands alone.

    Alike are those that lie together in every row that is looked at, closer than they may be off.
    """
    some = slice(None, None, -(-len(o) // ROWS_LOOKED_AT))
    steps = CLOSE * np.sqrt(np.mean(np.square(off[some]), axis=1, keepdims=True))
    cells = np.rint(o[some] / np.where(steps > 0, steps, np.inf))
    keys = _odd(len(cells)) @ cells.astype(np.int64)  # that wrap around
    ordered = np.sort(keys)
    if not np.any((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)):
        return None
    groups, of, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    sizes[groups == 0] = 1  # nothing there, as where no key is seen
    return None if (sizes == 1).all() else of


@cache
def _odd(n: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(1, 2**40, n) * 2 + 1


def _added_up(x: Array, groups: NDArray[np.int64]) -> Array:
    """The columns of each group as one."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    return np.asarray(np.add.reduceat(x[:, order], starts, axis=1))


def compared(o: Array) -> Array:
    """Of rows the columns that are compared with another row's."""
    return o[:, :: column_step(o.shape[1])]


def column_step(columns: int) -> int:
    """Every so many of a row's columns is compared."""
    return -(-columns // LOOKED_AT)


def shortened(some: Array) -> Array:
    """Few numbers that stand for each row."""
    return np.asarray(some @ _signs(some.shape[1]))


@cache
def _signs(columns: int) -> Array:
    return np.random.default_rng(0).choice([-1.0, 1.0], (columns, PROJECTED))


def most_equal(x: Array, *, half: bool) -> float:
    """How many rows are one and the same, at most, as far as such rounding tells; x: the token first."""
    if not half or len(x) == 1:
        return 1.0
    squares = _squared_cosines(shortened(compared(np.reshape(x, (len(x), -1)))))
    return float(np.max(np.sum(squares > 1 - EQUAL, axis=1)))


def rows_alike(short: Array, *, half: bool) -> Array:
    """For each row how many rows are wrong as it is, itself counted, `[rows]`.

    Equal rows count whole; in half precision any by the square of the cosine between them.

    Args:
        short: what stands for the rows, as `shortened` has it.
    """
    if len(short) == 1:
        return np.ones(1)
    if not half:
        return _equal_rows(_unit(short))
    squares = _squared_cosines(short)
    by_chance = (len(short) - 1) / PROJECTED
    return np.asarray(np.maximum(squares.sum(axis=1) - by_chance, 1.0))


def _equal_rows(unit: Array) -> Array:
    """For each row how many are the same but for a factor, itself counted; of rows of norm 1.

    Few have another whose first number is as near as an equal row's must be: only these are compared.
    """
    first = np.abs(unit[:, 0])
    order = np.argsort(first)
    near = np.diff(first[order]) < SAME**0.5
    few = order[np.append(near, False) | np.insert(near, 0, False)]
    counts = np.ones(len(unit))
    squares = np.square(unit[few] @ unit[few].T)
    counts[few] = np.maximum((squares > 1 - SAME).sum(axis=1), 1.0)
    return counts


def _squared_cosines(short: Array) -> Array:
    unit = _unit(short)
    return np.asarray(np.square(unit @ unit.T))


def _unit(short: Array) -> Array:
    norms = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.where(norms > 0, norms, 1.0))
