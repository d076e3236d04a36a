"""What bugs make of the calls that they are held against, each computed once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply, PatchedOracle
from llama_ckpt.points import Case

__all__ = ["Predictions"]

Array: TypeAlias = NDArray[Any]


@dataclass
class Predictions:
    """What each bug makes of a case, computed once; share one among diagnoses of the same cases.

    Attributes:
        base: the oracle that the bug is laid over, one that rounds as a program says; None: the exact one.
    """

    base: PatchedOracle | None = None
    _made: dict[tuple[str, int], dict[str, Array] | None] = field(default_factory=dict)
    _cases: dict[int, Case] = field(default_factory=dict)  # holds them, so that no id is used again

    def of(self, bug: Bug, case: Case) -> dict[str, Array] | None:
        """Every point of the case by name; None where the bug cannot be made of its arguments."""
        key = (bug.name, id(case))
        if key not in self._made:
            self._cases[id(case)] = case
            try:
                with np.errstate(all="ignore"):  # a bug may divide by zero or overflow
                    self._made[key] = bug.over(self.base).answers(case)
            except DoesNotApply:
                self._made[key] = None
        return self._made[key]
