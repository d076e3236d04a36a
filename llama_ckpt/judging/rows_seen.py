"""What is kept of the rows of a large tensor that were gone through: sums, and the worst of each kind.

`by_rows` makes a verdict of it; what rounding allows the rows is told by `rows_allowed`. Each pass over the
numbers costs as much as making them, so nothing is asked of all of them that a sum has answered. numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.metrics import Errors
from llama_ckpt.judging.rows_allowed import Allowed
from llama_ckpt.judging.spread import Spread
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


@dataclass
class Seen:
    """What is kept.

    Attributes:
        table: the limit that holds where nothing follows from a spread.
        floored: what each row is measured against; None: its own norm, as long as that is not known.
        norms, scales: the norm of each row, and what it was measured against.
        allowed: what rounding allows them.
        turned: by how many radians each pair is off, where something was turned.
        counts: errors of elements, by power of ten, as the tally has them.
        bad: of "o" and "x", where they are not finite first, what stands there in both, and how often.
    """

    table: Limit
    floored: Array | None = None
    norms: list[Array] = field(default_factory=list)
    scales: list[Array] = field(default_factory=list)
    row_errs: list[Array] = field(default_factory=list)
    turned: list[Array] = field(default_factory=list)
    allowed: Allowed | None = None
    counts: Any = 0
    sums: dict[str, float] = field(default_factory=dict)
    bad: dict[str, tuple[tuple[int, int], float, float, int]] = field(default_factory=dict)
    # The largest difference: how large, where, what x holds there and what it is held against.
    largest: tuple[float, tuple[int, int], float, float] = (-1.0, (0, 0), math.nan, math.nan)
    # The worst element for what it is allowed: what share of that, its error, what it is allowed.
    worst: tuple[float, float, float] = (-1.0, 0.0, 1.0)
    element_allowed: float = math.nan
    n: int = 0
    size: int = 0
    n_rows: int = 0
    n_differ: int = 0

    def add(self, rows: Rows) -> None:
        """Measure some rows, the next ones."""
        o, width = np.asarray(rows.o, np.float64), rows.width or rows.o.shape[1]
        residual = rows.x - o
        counts: Any = np.float64(width)
        if rows.judged is None:
            self.n += width * len(o)
        else:
            np.copyto(residual, 0.0, where=~rows.judged)
            o, counts = np.where(rows.judged, o, 0.0), np.count_nonzero(rows.judged, axis=1)[:, None]
            self.n += int(counts.sum())
        off = residual.sum()
        self.size += width * len(o)
        # A sum is not finite where a term is not, and is made in any case.
        if math.isfinite(off) or not self._is_broken(rows):
            square = np.square(o)
            norms = np.sqrt(np.add.reduce(square, axis=1))
            scale = np.where(norms > 0, norms, 1.0)
            if self.floored is not None:
                scale = self.floored[self.n_rows : self.n_rows + len(o)]
            self._more(residual=off, o2=norms @ norms, o4=np.vdot(square, square), cross=np.vdot(residual, o))
            errors = np.sqrt(np.vecdot(residual, residual))
            self._more(residual2=errors @ errors)
            np.abs(residual, out=residual)
            self._compare(rows, o, residual)
            against = np.abs(o, out=square)
            against += scale[:, None] / np.sqrt(np.maximum(counts, 1))
            self._elements(rows, o, residual, against, norms, scale)
            self._keep(norms, scale, errors / scale)
            if rows.spread is not None and rows.spread.angles is not None:
                self.turned.append(sideways(rows.x, o, rows.spread.angles.pairs))
        else:
            self._keep(*np.ones((3, len(o))))
        self.n_rows += len(o)

    def _more(self, **found: Any) -> None:
        for key, value in found.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(value)

    def _keep(self, norms: Array, scale: Array, errors: Array) -> None:
        self.norms.append(norms)
        self.scales.append(scale)
        self.row_errs.append(errors)

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
            self._more(apart2=np.vdot(apart, apart), theirs2=np.vdot(theirs, theirs))
            np.abs(apart, out=apart)
        at = divmod(int(np.argmax(apart)), o.shape[1])
        if apart[at] > self.largest[0]:
            place = self.n_rows + at[0], at[1]
            self.largest = float(apart[at]), place, float(rows.x[at]), float(against[at])

    def _elements(
        self, rows: Rows, o: Array, residual: Array, against: Array, norms: Array, scale: Array
    ) -> None:
        """The element that is furthest off for what it is allowed, how many are too far, and the tally."""
        with np.errstate(all="ignore"):
            if rows.spread is None:
                share, worth = np.divide(residual, against, out=residual), self.table.element_err
                self.counts = self.counts + sampled(share, None, rows.judged)
            else:
                self.counts = self.counts + sampled(residual, against, rows.judged)
                self.allowed = self.allowed or Allowed(self.table)
                allowed = self.allowed.add(o, rows.spread, rows.judged, norms, scale, rows.some)
                share, worth = residual / allowed, 1.0
            top = float(np.fmax.reduce(share, axis=None))  # nothing of what is allowed nothing is NaN
            if top / worth > self.worst[0]:
                at = divmod(int(np.argmax(share == top)), share.shape[1])
                if rows.spread is None:
                    self.worst = top / worth, top, worth
                else:
                    self.worst = top, float(residual[at] / against[at]), float(allowed[at] / against[at])
            if top <= worth:
                return
            self.n_differ += int(np.count_nonzero(share > worth))
            if rows.spread is not None:
                most = float((allowed / against)[residual > 0].max())
                self.element_allowed = max(most, self.element_allowed)

    # -- what it comes to ----------------------------------------------------------------------------

    @property
    def norm(self) -> float:
        """Of the oracle's tensor; 1 where it is nothing."""
        return math.sqrt(self.sums.get("o2", 0.0)) or 1.0

    @property
    def n_gain(self) -> float:
        """Over how many elements a gain is in effect averaged."""
        return float(self.sums["o2"] ** 2 / (self.sums["o4"] or 1.0))

    def limit(self) -> Limit:
        """What the tensor is held to."""
        if self.allowed is None:
            return self.table
        element = self.table.element_err if math.isnan(self.element_allowed) else self.element_allowed
        return self.allowed.limit(self.norm, self.n_gain, self.n, self.size, element)

    def errors(self) -> Errors:
        """As `measure` gives them."""
        norm, errs = self.norm, np.concatenate(self.row_errs)
        allowed = None if self.allowed is None else self.allowed.rows
        turn = None if self.allowed is None else self.allowed.turn
        with np.errstate(all="ignore"):
            worst = int(np.argmax(errs if allowed is None else np.where(errs > 0, errs / allowed, 0.0)))
        return Errors(
            err=math.sqrt(self.sums["residual2"]) / norm,
            row_err=float(errs[worst]),
            row=worst,
            element_err=self.worst[1],
            gain=self.sums["cross"] / norm**2,
            bias=self.sums["residual"] / (math.sqrt(max(self.n, 1)) * norm),
            n=self.n,
            n_gain=self.n_gain,
            row_allowed=math.nan if allowed is None else float(allowed[worst]),
            element_allowed=math.nan if allowed is None else self.worst[2],
            turn=None if turn is None else turn.worst(np.concatenate(self.turned)),
        )
