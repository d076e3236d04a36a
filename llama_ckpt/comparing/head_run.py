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
from llama_ckpt.comparing.own_run import OwnRun
from llama_ckpt.judging.near_ties import Rows
from llama_ckpt.judging.rounding_steps import PRECISIONS
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.step_spreads import norm_spread, product_spread
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import Case

__all__ = ["FixedRun", "HeadRun"]

Array: TypeAlias = NDArray[Any]

HEAD = ("output_norm", "logits")
"""The points that a `HeadRun` has."""


@dataclass(frozen=True, eq=False)
class FixedRun(OwnRun):
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
class HeadRun(OwnRun):
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

    def __getitem__(self, point: str) -> Array:
        if self.weights is None or self.given.start is None:
            raise KeyError(point)
        if point not in self._made:
            self._made[point] = self._make(point)
        return self._made[point]

    def __contains__(self, point: object) -> bool:
        return point in HEAD and self.weights is not None and self.given.start is not None

    def __iter__(self) -> Iterator[str]:
        return (point for point in HEAD if point in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _make(self, point: str) -> Array:
        if point == "output_norm":
            return oracle.rms_norm(self._start, self.weights.output_norm, eps=self.config.rms_norm_eps)
        return self.logits(slice(None))

    def logits(self, part: slice) -> Array:
        """Some rows of them, which are a vocabulary wide: `[rows, vocab]`."""
        return np.asarray(self._normed[part] @ self.weights.output.T)

    def logits_spread(self, part: slice) -> tuple[Array, Spread]:
        """These rows, and what rounding may leave there."""
        off = None
        if not self._sees_norm:
            off = self.spreads["output_norm"]
            off = (off.last_row() if self.last else off).rows(part)
        made = self.logits(part)
        return made, product_spread(
            self._normed[part], self.weights.output, made, PRECISIONS[self.dtype], off
        )

    @property
    def _start(self) -> Array:
        assert self.given.start is not None
        return self.given.start

    @property
    def _normed(self) -> Array:
        """What the head reads: their norm where they recorded it; only the row that is asked for."""
        read = self.theirs if self._sees_norm else self
        normed = np.asarray(read["output_norm"], np.float64)
        return normed[-1:] if self.last else normed

    @property
    def _sees_norm(self) -> bool:
        return "output_norm" in self.theirs

    def is_far(self, point: str) -> bool:
        """Whether whole blocks lie between a point and the nearest recorded ones."""
        return self.given.far and not (point == "logits" and self._sees_norm)

    def unjudged(self, point: str) -> Rows | None:
        """The tokens that a mixture may have put through other experts before; of those that are here."""
        ties = self.given.ties
        if ties is None or (point == "logits" and self._sees_norm):
            return None
        return ties[-1:] if self.last and point == "logits" else ties

    @property
    def spreads(self) -> HeadSpreads:
        """What rounding may leave, as of a block's points."""
        return HeadSpreads(self)

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
        return case, replace(self, given=given, theirs={}, _made={})


@dataclass(frozen=True, eq=False)
class HeadSpreads(Mapping[str, Spread]):
    """The spreads of `output_norm` and `logits`, each computed when it is asked for."""

    run: HeadRun

    def __getitem__(self, point: str) -> Spread:
        run = self.run
        if point not in run or run.is_far(point):
            raise KeyError(point)
        with np.errstate(all="ignore"):  # what overflows has no spread, and is told of elsewhere
            if point == "logits":
                return run.logits_spread(slice(None))[1]
            eps, weight = run.config.rms_norm_eps, run.weights.output_norm
            p, x = PRECISIONS[run.dtype], run.given.start
            assert x is not None
            return norm_spread(x, weight, run[point], eps, p, run.given.off)

    def __iter__(self) -> Iterator[str]:
        return (point for point in self.run if not self.run.is_far(point))

    def __len__(self) -> int:
        return sum(1 for _ in self)
