"""What bugs are held against: tensors on trial with the calls that they answer; what bugs make of those."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.diagnose.bugs import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply
from llama_ckpt.judging.limits import Limit
from llama_ckpt.points import Case

__all__ = ["FINEST", "Evidence", "Predictions"]

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

FINEST = 1e-12
"""Two tensors nearer than this are equal, even where nothing is left to compare that with."""


@dataclass(frozen=True)
class Evidence:
    """One tensor on trial, and the call of the oracle that it is an answer to.

    Attributes:
        name: the point's full name, one of those that the case returns or shows.
        x, o: the tensor on trial and the oracle's.
        limit: what holds there.
        case: arguments as the oracle takes them.
        mask: where it is judged, as in `compare.judge`.
    """

    name: str
    x: ArrayLike
    o: ArrayLike
    limit: Limit
    case: Case
    mask: Mask | None = None


@dataclass
class Predictions:
    """What each bug makes of a case, computed once; share one among diagnoses of the same cases."""

    _made: dict[tuple[str, int], dict[str, Array] | None] = field(default_factory=dict)
    _cases: dict[int, Case] = field(default_factory=dict)  # holds them, so that no id is used again

    def of(self, bug: Bug, case: Case) -> dict[str, Array] | None:
        """Every point of the case by name; None where the bug cannot be made of its arguments."""
        key = (bug.name, id(case))
        if key not in self._made:
            self._cases[id(case)] = case
            try:
                with np.errstate(all="ignore"):  # a bug may divide by zero or overflow
                    self._made[key] = bug.oracle.answers(case)
            except DoesNotApply:
                self._made[key] = None
        return self._made[key]
