"""A tensor on trial with the call of the oracle that it answers: what explanations are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.limits import Limit
from llama_ckpt.oracle.patched_oracle import PatchedOracle
from llama_ckpt.points import Case

__all__ = ["FINEST", "Evidence"]

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
        base: the oracle that o is of, one that rounds as the program says; None: the exact one.
    """

    name: str
    x: ArrayLike
    o: ArrayLike
    limit: Limit
    case: Case
    mask: Mask | None = None
    base: PatchedOracle | None = None
