"""What a tensor is held against: points in float64, computed from the nearest inputs that were recorded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

from numpy.typing import NDArray

from llama_ckpt.judging.near_ties import Rows
from llama_ckpt.judging.spread import Spread
from llama_ckpt.oracle.patched_oracle import PatchedOracle
from llama_ckpt.points import Case

__all__ = ["OwnRun"]

Array: TypeAlias = NDArray[Any]


class OwnRun(Mapping[str, Array]):
    """Points by neutral name; those that can be computed are there."""

    @abstractmethod
    def is_far(self, point: str) -> bool:
        """Whether whole blocks lie between a point and the nearest recorded ones."""

    @property
    def base(self) -> PatchedOracle | None:
        """The oracle that the points are of, where that rounds; None: the exact one."""
        return None

    @property
    @abstractmethod
    def spreads(self) -> Mapping[str, Spread]:
        """What rounding may leave since these; a point that is far has none."""

    def unjudged(self, point: str) -> Rows | None:
        """The tokens that nobody can judge, as a mixture may have gone another way there; None for none."""
        return None

    @abstractmethod
    def call(self, point: str) -> tuple[Case, OwnRun] | None:
        """The call of the oracle that answers for a point, and a run with its answers; None without one."""
