"""What stands outside the blocks in float64: the last norm and the logits, on the nearest recorded points.

The same faces as a `BlockRun` and its `BlockSpreads`, for one step before the blocks and
two after. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.block_run import Given
from llama_ckpt.judging.rounding_steps import PRECISIONS
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.step_spreads import norm_spread, product_spread
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import Case

__all__ = ["FixedRun", "HeadRun"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, eq=False)
class FixedRun(Mapping[str, Array]):
    """Points whose values are known as they are, such as rows of a table.

    Attributes:
        known: by neutral name.
        cases: the calls that they answer, where bugs are to be tried.
    """

    known: Mapping[str, Array]
    cases: Mapping[str, Case] = field(default_factory=dict)

    def __getitem__(self, point: str) -> Array:
        return self.known[point]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)

    def is_far(self, point: str) -> bool:
        """Nothing lies between."""
        return False

    @property
    def spreads(self) -> Mapping[str, Spread]:
        """None: nothing is computed."""
        return {}

    def call(self, point: str) -> tuple[Case, FixedRun] | None:
        """The call that answers for a point, and its answers."""
        return (self.cases[point], self) if point in self.cases else None


@dataclass(frozen=True, eq=False)
class HeadRun(Mapping[str, Array]):
    """`output_norm` and `logits` by name, on what goes in and on their own norm where they recorded it.

    Attributes:
        given: what comes out of the last block.
        weights, config: the model's; weights None without one: then nothing is computed.
        dtype: the program's.
        theirs: their `output_norm`, where it can be relied on.
        last: logits are those of the last token alone, `[1, vocab]`.
    """

    given: Given
    weights: Any
    config: Any
    dtype: str
    theirs: Mapping[str, Array]
    last: bool = False
    _made: dict[str, Array] = field(default_factory=dict)
    _spreads: dict[str, Spread] = field(default_factory=dict)

    def __getitem__(self, point: str) -> Array:
        if self.weights is None or self.given.start is None:
            raise KeyError(point)
        if point not in self._made:
            self._made[point] = self._make(point)
        return self._made[point]

    def __iter__(self) -> Iterator[str]:
        there = self.weights is not None and self.given.start is not None
        return iter(("output_norm", "logits") if there else ())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _make(self, point: str) -> Array:
        if point == "output_norm":
            return oracle.rms_norm(self._start, self.weights.output_norm, eps=self.config.rms_norm_eps)
        if point == "logits":
            return np.asarray(self._normed @ self.weights.output.T)
        raise KeyError(point)

    @property
    def _start(self) -> Array:
        assert self.given.start is not None
        return self.given.start

    @property
    def _normed(self) -> Array:
        """What the head reads: their norm where they recorded it; only the row that is asked for."""
        normed = np.asarray(
            self.theirs["output_norm"] if self._sees_norm else self["output_norm"], np.float64
        )
        return normed[-1:] if self.last else normed

    @property
    def _sees_norm(self) -> bool:
        return "output_norm" in self.theirs

    def is_far(self, point: str) -> bool:
        """Whether whole blocks lie between a point and the nearest recorded ones."""
        return self.given.far and not (point == "logits" and self._sees_norm)

    @property
    def spreads(self) -> Mapping[str, Spread]:
        """What rounding may leave, as of a block's points."""
        near = [point for point in self if not self.is_far(point)]
        with np.errstate(all="ignore"):
            return {point: self._spread(point) for point in near}

    def _spread(self, point: str) -> Spread:
        if point not in self._spreads:
            self._spreads[point] = self._spread_of(point)
        return self._spreads[point]

    def _spread_of(self, point: str) -> Spread:
        p = PRECISIONS[self.dtype]
        if point == "output_norm":
            eps, weight = self.config.rms_norm_eps, self.weights.output_norm
            return norm_spread(self._start, weight, self[point], eps, p, self.given.off)
        off = None if self._sees_norm else self._spread("output_norm")
        off = off.last_row() if off is not None and self.last else off
        return product_spread(self._normed, self.weights.output, self[point], p, off)

    def call(self, point: str) -> tuple[Case, HeadRun] | None:
        """The call of the oracle that answers for both, and its answers; None across whole blocks."""
        if not len(self) or self.given.far:
            return None
        given, returns, taps = self.given, "logits", {"output_norm": "output_norm"}
        if self.last and point == "logits":  # a row of one has no place beside a norm of all
            off = None if given.off is None else given.off.last_row()
            given, taps = Given(self._start[-1:], given.far, off), {}
        elif self.last:
            returns = "logits of every token"
        arguments = {"x": given.start, "weights": self.weights, "config": self.config}
        case = Case("output_logits", arguments, (returns,), taps)
        return case, replace(self, given=given, theirs={}, _made={}, _spreads={})
