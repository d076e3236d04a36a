"""What rounding may leave at the points of a `BlockRun`, since the nearest recorded ones.

Each step's own, from the values that it reads, and what comes from steps before it that were not recorded.
Across whole blocks no such sum holds: there a total error's limit does. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.attention import Attention
from llama_ckpt.comparing.block_run import ATTENDED, WEIGHT_OF, BlockRun
from llama_ckpt.comparing.nearest import step_reads
from llama_ckpt.judging.rounding import PRECISIONS, Precision, Spread, case_spreads, sum_spread
from llama_ckpt.judging.rounding_parts import as_recorded
from llama_ckpt.judging.rounding_steps import gated, norm_deviation, product_deviation, turned_spread
from llama_ckpt.points import BLOCK_INPUT, BLOCK_POINTS, POINTS

__all__ = ["BlockSpreads", "OwnBlock"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, eq=False)
class BlockSpreads(Mapping[str, Spread]):
    """The spreads of a block's points by neutral name, each computed when it is asked for.

    A point that cannot be computed, or only across whole blocks, has none and is not there.
    """

    run: BlockRun
    _made: dict[str, Spread | None] = field(default_factory=dict)

    def __getitem__(self, point: str) -> Spread:
        if point not in self._made:
            there = self.run.compute(point) is not None and not self.run.is_far(point)
            with np.errstate(all="ignore"):  # an input that overflows has no spread, and is told of elsewhere
                self._made[point] = self._spread(point) if there else None
        found = self._made[point]
        if found is None:
            raise KeyError(point)
        return found

    def __iter__(self) -> Iterator[str]:
        return (point.name for point in BLOCK_POINTS if self.get(point.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def off(self, point: str) -> Array | None:
        """How far from the program's own value the known one of a point may be; None for not at all."""
        if point == BLOCK_INPUT:
            return self.run.given.off
        if point in self.run.theirs:
            # What a function only shows may be rounded where the program went on with more.
            return as_recorded(self.run.theirs[point], self._p) if POINTS[point].inner else None
        spread = self.get(point)
        return None if spread is None else spread.whole

    def _spread(self, point: str) -> Spread | None:
        run, y = self.run, self.run.compute(point)
        assert y is not None
        # Errors of several steps may point the same way, which adding up squares does not know.
        several = any(one != BLOCK_INPUT and one not in run.theirs for one in step_reads(point))
        if point in ATTENDED:
            return Spread(self._attended(point, y), composed=several)
        read, off = run.read(point), [self.off(one) for one in step_reads(point)]
        if point in ("attn_norm", "ffn_norm"):
            eps = run.flow.config.rms_norm_eps
            made = Spread(norm_deviation(read[0], run.weight(point), y, eps, self._p, off[0]))
        elif point in WEIGHT_OF:
            made = Spread(product_deviation(read[0], run.weight(point), y, self._p, off[0]))
        elif point in ("q_rope", "k_rope"):
            made = turned_spread(read[0], run.flow.positions, run.frequencies, self._p, False, off[0])
        elif point == "ffn_swiglu":
            made = Spread(gated(read[0], read[1], off[0], off[1], self._p)[1])
        elif POINTS[point].function == "add":
            made = sum_spread(read[0], read[1], run.flow.dtype, *off)
        else:
            return self._by_its_function(point)
        return replace(made, composed=several)

    def _by_its_function(self, point: str) -> Spread | None:
        case, y = self.run.case(point), self.run.compute(point)
        if case is None or y is None:
            return None
        return case_spreads(case.function, case.arguments, {point: y}, self.run.flow.dtype).get(point)

    @cached_property
    def attention(self) -> Attention | None:
        """The block's, with what its computed inputs are off by."""
        if self.run.attention is None:
            return None
        off = {name: self.off(point) for name, point in (("q", "q_rope"), ("k", "k_rope"), ("v", "v"))}
        return replace(self.run.attention, off={n: spread for n, spread in off.items() if spread is not None})

    def _attended(self, point: str, y: Array) -> Array:
        attention = self.attention
        assert attention is not None
        if point == "attn_context":
            return attention.context_deviation(y)
        made = np.empty(y.shape, np.float32)  # two digits count, and these are the largest arrays there are
        for part in attention.parts():
            if point == "attn_scores":
                off = attention.scores_deviation(part, attention.scores_of(part))
            else:
                off = attention.probs_deviation(part)[0]
            made[part] = off.transpose(1, 0, 2)
        return made

    @property
    def _p(self) -> Precision:
        return PRECISIONS[self.run.flow.dtype]


class OwnBlock(BlockRun):
    """A block on what was recorded of it, with what rounding may leave at its points."""

    @cached_property
    def spreads(self) -> BlockSpreads:
        """By neutral name."""
        return BlockSpreads(self)
