"""What rounding allows a large tensor whose rows are gone through a few at a time: `within`, row by row.

numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.directions import Directions
from llama_ckpt.judging.limits import ELEMENT, ERR, ROW, Limit, directed, follows, turn_limit, with_mode
from llama_ckpt.judging.metrics import averaging
from llama_ckpt.judging.rounding_steps import PRECISIONS
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.turns import TurnLimit

__all__ = ["Allowed", "elements_allowed"]

Array: TypeAlias = NDArray[Any]


@dataclass
class Allowed:
    """What the rows so far are allowed.

    Attributes:
        table: the limit of the table.
    """

    table: Limit

    def __post_init__(self) -> None:
        self._directions = Directions(PRECISIONS[self.table.dtype].half > 0)
        self._rows: list[Array] = []
        self._turns: list[TurnLimit] = []
        self._deviation, self._mode, self._most, self._lean = 0.0, 0.0, 0.0, 0.0

    def add(self, o: Array, spread: Spread, judged: Array | None, norms: Array, some: Array | None) -> Array:
        """Add some rows; what each of their elements is allowed, absolute.

        Args:
            o: the oracle's, zero where not judged; spread: theirs, flat.
            norms: of its rows; some: as in `Rows`.
        """
        deviation = _wide(spread.deviation, o, judged)
        off = np.sqrt(np.vecdot(deviation, deviation))
        self._deviation += float(off @ off)
        self._directions.add(o, deviation, spread, norms=norms, some=some)
        mode = np.zeros(len(o))
        if spread.together is not None:
            mode = np.linalg.norm(_wide(spread.together, o, judged), axis=1)
            self._mode = max(self._mode, float(mode.max(initial=0.0)))
        allowed, rows = ELEMENT * deviation, with_mode(ROW, off, mode)
        if spread.most is not None:
            most = _wide(spread.most, o, judged)
            squares = np.einsum("ij,ij->i", most, most)
            self._most += float(squares.sum())
            self._lean += spread.lean
            allowed, rows = allowed + most, rows + np.sqrt(squares)
        self._rows.append(rows)
        turn = turn_limit(spread, o)
        if turn is not None:
            self._turns.append(turn)
        return allowed

    def rows(self, scale: Array) -> Array:
        """What each row is allowed, of what it is measured against."""
        return np.asarray(np.concatenate(self._rows) / scale)

    @property
    def turn(self) -> TurnLimit | None:
        """What the angles are allowed."""
        return TurnLimit.of_parts(self._turns) if self._turns else None

    def limit(self, norm: float, n_gain: float, n: int, size: int, element: float, scale: Array) -> Limit:
        """What the tensor is held to.

        Args:
            norm: of the oracle's; n_gain: as in `Errors`; scale: what each row is measured against.
            n: how many elements are judged, of `size`; element: the most that one is allowed, for its size.
        """
        deviation, most, rows = math.sqrt(self._deviation), math.sqrt(self._most), self.rows(scale)
        err = (float(with_mode(ERR, deviation, self._mode)) + most) / norm
        gain, bias = directed(
            self.table,
            err,
            self._directions.gain_and_bias(norm, size),
            floor=deviation / norm,
            turned=most / norm,
            lean=self._lean / (norm * math.sqrt(max(size, 1))),
        )
        return replace(
            follows(self.table, err, float(rows.max()), element),
            gain=gain / averaging(n_gain),
            bias=bias / averaging(n),
            rows=rows,
            turn=self.turn,
        )


def elements_allowed(spread: Spread, o: Array, judged: Array | None) -> Array:
    """What each element of some rows is allowed, absolute, as `Allowed.add` has it."""
    allowed = ELEMENT * _wide(spread.deviation, o, judged)
    return allowed if spread.most is None else allowed + _wide(spread.most, o, judged)


def _wide(array: Any, o: Array, judged: Array | None) -> Array:
    wide: Array = np.broadcast_to(np.asarray(array, np.float64), o.shape)
    return wide if judged is None else np.where(judged, wide, 0.0)
