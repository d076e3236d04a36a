"""What is kept of the rows of a large tensor that were gone through: sums, and the worst of each kind.

`by_rows` makes a verdict of it; what rounding allows the rows is told by `rows_allowed`. Each pass over the
numbers costs as much as making them, so nothing is asked of all of them that a sum has answered. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.metrics import Errors, floored_norms
from llama_ckpt.judging.rows_allowed import Allowed, elements_allowed
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.sums import inner
from llama_ckpt.judging.tally import sampled
from llama_ckpt.judging.turns import sideways

__all__ = ["Rows", "Seen"]

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """A few rows of a tensor, flat, `[rows, elements]`.

    Attributes:
        x, o: the tensor on trial and the oracle's; r: llama.cpp's, or None.
        spread: what rounding may leave in them, flat as well; None where no limit follows from it.
        judged: where it is judged; None for everywhere.
        width: how many elements a row has, where those that are 0 by themselves are left out.
        some: of the oracle's the columns that one row is compared with another by, where some are left out.
    """

    x: Array
    o: Array
    r: Array | None = None
    spread: Spread | None = None
    judged: Mask | None = None
    width: int | None = None
    some: Array | None = None


@dataclass(frozen=True)
class Elements:
    """What is kept of the elements of a few rows.

    Attributes:
        counts: of errors by power of ten, as the tally has them.
        worst: the one that is furthest off for what it is allowed: what share of that, its error, what it is
            allowed.
        differ: how many are further off than they may be; allowed: the most that one of these is allowed.
    """

    counts: Any
    worst: tuple[float, float, float]
    differ: int = 0
    allowed: float = math.nan


@dataclass
class Seen:
    """What is kept.

    Attributes:
        table: the limit that holds where nothing follows from a spread.
        floored: what each row is measured against; None: its own norm, as long as that is not known.
        norms, scales: the norm of each row, and what it was measured against; errors: how far it is off.
        allowed: what rounding allows them.
        turned: by how many radians each pair is off, where something was turned.
        elements: of each part that was added; None where it is not finite.
        bad: of "o" and "x", where they are not finite first, what stands there in both, and how often.
    """

    table: Limit
    floored: Array | None = None
    norms: list[Array] = field(default_factory=list)
    scales: list[Array] = field(default_factory=list)
    row_errors: list[Array] = field(default_factory=list)
    turned: list[Array] = field(default_factory=list)
    allowed: Allowed | None = None
    elements: list[Elements | None] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    bad: dict[str, tuple[tuple[int, int], float, float, int]] = field(default_factory=dict)
    # The largest difference: how large, where, what x holds there and what it is held against.
    largest: tuple[float, tuple[int, int], float, float] = (-1.0, (0, 0), math.nan, math.nan)
    n: int = 0
    size: int = 0
    n_rows: int = 0

    def add(self, rows: Rows) -> None:
        """Measure some rows, the next ones."""
        o, residual, counts = _judged(rows)
        width = rows.width or rows.o.shape[1]
        self.n += width * len(o) if rows.judged is None else int(counts.sum())
        off = residual.sum()
        self.size += width * len(o)
        # A sum is not finite where a term is not, and is made in any case.
        if math.isfinite(off) or not self._is_broken(rows):
            square = np.square(o)
            norms = np.sqrt(np.add.reduce(square, axis=1))
            scale = np.where(norms > 0, norms, 1.0)
            if self.floored is not None:
                scale = self.floored[self.n_rows : self.n_rows + len(o)]
            self._more(residual=off, o2=norms @ norms, o4=inner(square, square), cross=inner(residual, o))
            errors = np.sqrt(np.vecdot(residual, residual))
            self._more(residual2=errors @ errors)
            np.abs(residual, out=residual)
            self._compare(rows, o, residual)
            against = _against(o, scale, counts, out=square)
            allowed = None
            if rows.spread is not None:
                self.allowed = self.allowed or Allowed(self.table)
                with np.errstate(all="ignore"):
                    allowed = self.allowed.add(o, rows.spread, rows.judged, norms, rows.some)
            self.elements.append(_elements(residual, against, allowed, rows.judged, self.table))
            self._keep(norms, scale, errors)
            if rows.spread is not None and rows.spread.angles is not None:
                self.turned.append(sideways(rows.x, o, rows.spread.angles.pairs))
        else:
            self.elements.append(None)
            self._keep(*np.ones((3, len(o))))
        self.n_rows += len(o)

    def floor(self, made: Callable[[], Iterable[Rows]]) -> None:
        """Measure against their floor the rows that have next to no norm: it is known when all are seen.

        Args:
            made: gives all rows once more; those after the last one of these are not asked for.
        """
        floored = floored_norms(np.concatenate(self.norms))
        few, start = floored != np.concatenate(self.scales), 0
        if not few.any():
            return
        for part, rows in enumerate(made()):
            here = slice(start, start + len(rows.o))
            if few[here].any() and self.elements[part] is not None:
                o, residual, counts = _judged(rows)
                np.abs(residual, out=residual)
                with np.errstate(all="ignore"):
                    allowed = None if rows.spread is None else elements_allowed(rows.spread, o, rows.judged)
                against = _against(o, floored[here], counts)
                self.elements[part] = _elements(residual, against, allowed, rows.judged, self.table)
            start = here.stop
            if not few[start:].any():
                break
        self.scales = [floored]

    def _more(self, **found: Any) -> None:
        for key, value in found.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(value)

    def _keep(self, norms: Array, scale: Array, errors: Array) -> None:
        self.norms.append(norms)
        self.scales.append(scale)
        self.row_errors.append(errors)

    def _is_broken(self, rows: Rows) -> bool:
        """Whether some of what is judged is not finite; it is counted."""
        for whose, array in (("o", rows.o), ("x", rows.x)):
            wrong = ~np.isfinite(array)
            if rows.judged is not None:
                wrong &= rows.judged
            if wrong.any():
                at = divmod(int(np.argmax(wrong)), array.shape[1])
                first = (self.n_rows + at[0], at[1]), float(rows.x[at]), float(rows.o[at]), 0
                where, got, wanted, count = self.bad.get(whose, first)
                self.bad[whose] = where, got, wanted, count + int(wrong.sum())
        return bool(self.bad)

    def _compare(self, rows: Rows, o: Array, residual: Array) -> None:
        """The largest difference from llama.cpp's, or from the oracle's where there is none."""
        against, apart = o, residual
        if rows.r is not None:
            against = np.asarray(rows.r, np.float64)
            apart, theirs = rows.x - against, against - o
            if rows.judged is not None:
                for array in (apart, theirs):
                    np.copyto(array, 0.0, where=~rows.judged)
            self._more(apart2=inner(apart, apart), theirs2=inner(theirs, theirs))
            np.abs(apart, out=apart)
        at = divmod(int(np.argmax(apart)), o.shape[1])
        if apart[at] > self.largest[0]:
            place = self.n_rows + at[0], at[1]
            self.largest = float(apart[at]), place, float(rows.x[at]), float(against[at])

    # -- what it comes to ----------------------------------------------------------------------------

    @property
    def norm(self) -> float:
        """Of the oracle's tensor; 1 where it is nothing."""
        return math.sqrt(self.sums.get("o2", 0.0)) or 1.0

    @property
    def n_gain(self) -> float:
        """Over how many elements a gain is in effect averaged."""
        return float(self.sums["o2"] ** 2 / (self.sums["o4"] or 1.0))

    @property
    def _measured(self) -> list[Elements]:
        return [one for one in self.elements if one is not None]

    @property
    def counts(self) -> Any:
        """Errors of elements, by power of ten."""
        return sum((one.counts for one in self._measured), 0)

    @property
    def n_differ(self) -> int:
        """How many elements are further off than they may be."""
        return sum(one.differ for one in self._measured)

    def limit(self) -> Limit:
        """What the tensor is held to."""
        if self.allowed is None:
            return self.table
        element = max((one.allowed for one in self._measured if one.differ), default=self.table.element_err)
        scale = np.concatenate(self.scales)
        return self.allowed.limit(self.norm, self.n_gain, self.n, self.size, element, scale)

    def errors(self) -> Errors:
        """As `measure` gives them."""
        scale = np.concatenate(self.scales)
        norm, errs = self.norm, np.concatenate(self.row_errors) / scale
        allowed = None if self.allowed is None else self.allowed.rows(scale)
        element = max((one.worst for one in self._measured), key=lambda one: one[0])
        turn = None if self.allowed is None else self.allowed.turn
        with np.errstate(all="ignore"):
            worst = int(np.argmax(errs if allowed is None else np.where(errs > 0, errs / allowed, 0.0)))
        return Errors(
            err=math.sqrt(self.sums["residual2"]) / norm,
            row_err=float(errs[worst]),
            row=worst,
            element_err=element[1],
            gain=self.sums["cross"] / norm**2,
            bias=self.sums["residual"] / (math.sqrt(max(self.n, 1)) * norm),
            n=self.n,
            n_gain=self.n_gain,
            row_allowed=math.nan if allowed is None else float(allowed[worst]),
            element_allowed=math.nan if allowed is None else element[2],
            turn=None if turn is None else turn.worst(np.concatenate(self.turned)),
        )


def _judged(rows: Rows) -> tuple[Array, Array, Any]:
    """The oracle's rows and how far theirs are off, 0 where not judged, and how many of a row are judged."""
    o = np.asarray(rows.o, np.float64)
    residual = rows.x - o
    if rows.judged is None:
        return o, residual, np.float64(rows.width or o.shape[1])
    np.copyto(residual, 0.0, where=~rows.judged)
    return np.where(rows.judged, o, 0.0), residual, np.count_nonzero(rows.judged, axis=1)[:, None]


def _against(o: Array, scale: Array, counts: Any, out: Array | None = None) -> Array:
    """What each element's error is measured against: itself, and its row's rms."""
    against = np.abs(o, out=out)
    against += scale[:, None] / np.sqrt(np.maximum(counts, 1))
    return against


def _elements(
    residual: Array, against: Array, allowed: Array | None, judged: Mask | None, table: Limit
) -> Elements:
    """The element that is furthest off for what it is allowed, how many are too far, and the tally.

    Args:
        residual: how far each is off, against: what that is measured against, allowed: what rounding allows
            it, absolute; None: what the table does.
    """
    with np.errstate(all="ignore"):
        if allowed is None:
            share, worth = np.divide(residual, against, out=residual), table.element_err
            counts = sampled(share, None, judged)
        else:
            counts = sampled(residual, against, judged)
            share, worth = residual / allowed, 1.0
        top = float(np.fmax.reduce(share, axis=None))  # nothing of what is allowed nothing is NaN
        if allowed is None:
            worst = top / worth, top, worth
        elif top > -1.0:
            at = divmod(int(np.argmax(share == top)), share.shape[1])
            worst = top, float(residual[at] / against[at]), float(allowed[at] / against[at])
        else:
            worst = -1.0, 0.0, 1.0
        if not top > worth:
            return Elements(counts, worst)
        differ = int(np.count_nonzero(share > worth))
        most = math.nan if allowed is None else float((allowed / against)[residual > 0].max())
        return Elements(counts, worst, differ, most)
