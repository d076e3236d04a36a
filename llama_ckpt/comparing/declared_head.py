"""The last norm and the logits of a program that rounds as it declares. numpy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.formats import rounded
from llama_ckpt.comparing.declared import Declared, wider, with_falls
from llama_ckpt.comparing.head_run import HeadRun, HeadSpreads
from llama_ckpt.judging.spread import Spread
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.patched_oracle import PatchedOracle

__all__ = ["DeclaredHead"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, eq=False)
class DeclaredHead(HeadRun):
    """`output_norm` and `logits`, rounded as declared.

    Attributes:
        declared: what is rounded; never None.
    """

    declared: Declared | None = None

    @property
    def by(self) -> Declared:
        """What is rounded."""
        assert self.declared is not None
        return self.declared

    @property
    def base(self) -> PatchedOracle:
        """The oracle that rounds as declared."""
        return self.by.oracle

    def declaring(self, declared: Declared) -> DeclaredHead:
        """The same points with other roundings."""
        return replace(self, declared=declared, _made={})

    def _make(self, point: str) -> Array:
        if point == "output_norm":
            return rounded(self.unrounded_norm, self.by.result(point))
        return self.logits(slice(None))

    @property
    def unrounded_norm(self) -> Array:
        """The norm before its result is rounded."""
        made: Array = self.by.before.rms_norm(
            self._start, self.weights.output_norm, eps=self.config.rms_norm_eps
        )
        return made

    def logits(self, part: slice) -> Array:
        """Some rows of them: `[rows, vocab]`."""
        return rounded(self._unrounded(part), self.by.result("logits"))

    def _unrounded(self, part: slice) -> Array:
        made: Array = self.by.before.head(self._normed[part], self.weights.output)
        return made

    def logits_spread(self, part: slice) -> tuple[Array, Spread]:
        """These rows, and what rounding may leave there."""
        made, spread = super().logits_spread(part)
        common = self.by.in_common(self.weights.output, head=True)
        spread = replace(spread, everywhere=float(np.hypot(spread.everywhere, common)))
        off = None
        if not self._sees_norm:
            norm = self.spreads["output_norm"]
            off = (norm.last_row() if self.last else norm).rows(part).whole
        rows, output = self._normed[part], self.weights.output
        spread = wider(spread, self.by.product_ties(rows, off, output, head=True), made)
        spread = with_falls(spread, self.by.falls_together(rows, output, made, head=True))
        either = self.by.result_ties("logits", self._unrounded(part), spread)
        return made, wider(spread, either, made)

    @property
    def spreads(self) -> HeadSpreads:
        """What rounding may leave."""
        return DeclaredHeadSpreads(self)

    def costs(self, point: str) -> float:
        """How far the roundings put a point from the exact one on the same inputs, relative."""
        if point == "output_norm":
            exact = oracle.rms_norm(self._start, self.weights.output_norm, eps=self.config.rms_norm_eps)
        else:
            exact = np.asarray(self._normed @ self.weights.output.T)
        norm = float(np.linalg.norm(exact))
        return float(np.linalg.norm(self[point] - exact)) / norm if norm else 0.0


@dataclass(frozen=True, eq=False)
class DeclaredHeadSpreads(HeadSpreads):
    """With what may fall to another neighbour."""

    def __getitem__(self, point: str) -> Spread:
        spread, run = super().__getitem__(point), self.run
        if point == "logits":  # its own rows have it
            return spread
        assert isinstance(run, DeclaredHead)
        x, weight, eps = run._start, np.asarray(run.weights.output_norm), run.config.rms_norm_eps
        came = None if run.given.off is None else run.given.off.whole
        spread = wider(spread, run.by.norm_ties(x, came, weight, eps), run[point])
        return wider(spread, run.by.result_ties(point, run.unrounded_norm, spread), run[point])
