"""What rounding may leave at the points of a `BlockRun`, since the nearest recorded ones.

Each step's own, from the values that it reads, and what comes from steps before it that were not recorded.
Across whole blocks no such sum holds: there a total error's limit does. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.attention import Attention
from llama_ckpt.comparing.block_run import ATTENDED, NORMS, TO_THE_CONTEXT, BlockRun
from llama_ckpt.comparing.own_run import OwnRun
from llama_ckpt.judging.limits import ELEMENT, limit_for
from llama_ckpt.judging.rounding import case_spreads, experts_spread
from llama_ckpt.judging.rounding_steps import PRECISIONS, Precision
from llama_ckpt.judging.spread import RowSums, Spread
from llama_ckpt.judging.step_spreads import (
    biased_spread,
    gated_spread,
    mixed_spread,
    norm_spread,
    softmax_spread,
    sum_spread,
    turned_spread,
)
from llama_ckpt.points import ALL_POINTS, BLOCK_INPUT

__all__ = ["BlockSpreads", "OwnBlock"]

Array: TypeAlias = NDArray[Any]


LARGE = 1 << 22
"""Spreads of more numbers are kept in float32: of a deviation two digits count."""


@dataclass(frozen=True, eq=False)
class BlockSpreads(Mapping[str, Spread]):
    """The spreads of a block's points by neutral name, each computed when it is asked for.

    A point that cannot be computed, or only across whole blocks, has none and is not there.
    """

    run: BlockRun
    _made: dict[str, Spread | None] = field(default_factory=dict)
    _attention: list[Attention] = field(default_factory=list)

    def __getitem__(self, point: str) -> Spread:
        found = None if self.run.is_far(point) else self._since_the_steps(point)
        if found is None:
            raise KeyError(point)
        return found

    def _since_the_steps(self, point: str) -> Spread | None:
        """What the block's own steps leave, wherever its input comes from."""
        if point in self._made:
            return self._made[point]
        there = self.run.compute(point) is not None
        with np.errstate(all="ignore"):  # an input that overflows has no spread, and is told of elsewhere
            found = self._spread(point) if there else None
        if found is not None and np.size(found.deviation) > LARGE:
            found = found.in_float32()
        if point not in self.run.theirs or ALL_POINTS[point].inner:  # else no step asks for it again
            self._made[point] = found
        return found

    def __iter__(self) -> Iterator[str]:
        return (point.name for point in self.run.flow.points if self.get(point.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def off(self, point: str) -> Spread | None:
        """How far from the program's own value the known one of a point may be; None for not at all."""
        if point == BLOCK_INPUT:
            return self.run.given.off
        if point in self.run.theirs and not ALL_POINTS[point].inner:
            return None
        # What a function only shows may have been computed beside what it went on with: a fused kernel has
        # some of its own, of which a recorder sees nothing. So it is as wide as if it had not been recorded.
        return self._since_the_steps(point)

    def _spread(self, point: str) -> Spread | None:
        run, y = self.run, self.run.compute(point)
        assert y is not None
        if point in ATTENDED:
            return self._attended(point, y)
        read, off = run.read(point), [self.off(one) for one in run.flow.reads(point)]
        if point in NORMS:
            return norm_spread(read[0], run.weight(point), y, run.flow.config.rms_norm_eps, self._p, off[0])
        if run.is_product(point):
            return biased_spread(read[0], run.weight(point), y, run.bias(point), run.flow.dtype, off[0])
        if point in ("q_rope", "k_rope"):
            at = run.flow.positions, run.frequencies
            return turned_spread(read[0], y, *at, self._p, False, off[0])
        if point == "ffn_swiglu":
            return gated_spread(read[0], read[1], self._p, *off)
        if ALL_POINTS[point].function == "add":
            return sum_spread(read[0], read[1], run.flow.dtype, *off)
        return self._of_experts(point, y, read, off) if run.flow.experts else self._by_its_function(point)

    def _of_experts(self, point: str, y: Array, read: list[Array], off: list[Spread | None]) -> Spread | None:
        """Of a mixture; the choice is taken as it is."""
        flow = self.run.flow
        if point == "ffn_weights" and off[0] is not None:
            chosen = read[1]
            return softmax_spread(y, np.take_along_axis(off[0].whole, chosen, axis=1), self._p)
        if point == "ffn_expert_out":
            w = self.run.weights
            matrices = {"w_gate": w.w_gate, "w_up": w.w_up, "w_down": w.w_down}
            return experts_spread(read[0], matrices, read[1], y, len(w.w_router), flow.dtype, off[0])
        if point == "ffn_out" and off[0] is not None and off[1] is not None:
            return mixed_spread(read[1], read[0], off[1].whole, off[0], self._p)
        return None if point in ("ffn_chosen", "ffn_weights", "ffn_out") else self._by_its_function(point)

    def _by_its_function(self, point: str) -> Spread | None:
        case, y = self.run.case(point), self.run.compute(point)
        if case is None or y is None:
            return None
        return case_spreads(case.function, case.arguments, {point: y}, self.run.flow.dtype).get(point)

    @property
    def attention(self) -> Attention | None:
        """The block's, with what its computed inputs are off by."""
        if self.run.attention is None:
            return None
        if not self._attention:
            off = {name: self.off(point) for name, point in (("q", "q_rope"), ("k", "k_rope"), ("v", "v"))}
            known = {name: spread for name, spread in off.items() if spread is not None}
            self._attention.append(self.run.attention.with_off(known) if known else self.run.attention)
        return self._attention[0]

    def _attended(self, point: str, y: Array) -> Spread:
        attention = self.attention
        assert attention is not None
        if point == "attn_context":
            has_weights = self.run.weights is not None
            out, wo = (
                (self.run.compute("attn_out"), self.run.weight("attn_out")) if has_weights else (None, None)
            )
            return attention.context_spread(y, out, wo)
        make = attention.scores_spread if point == "attn_scores" else attention.probs_spread
        made: Any = np.empty(
            y.shape, np.float32
        )  # two digits count, and these are the largest arrays there are
        sums, spread, equal = np.zeros((2, len(y))), Spread(made), np.zeros(2)
        for part in attention.whole_parts():
            spread = make(part)[1]
            made[part.queries] = spread.deviation
            equal += np.sqrt(spread.equal)
            if spread.sums is not None:
                sums[:, part.queries] = spread.sums.along, spread.sums.plain
        together = float(equal[0]) ** 2, float(equal[1]) ** 2
        known = None if spread.sums is None else RowSums(*sums)
        return replace(spread, deviation=made, sums=known, equal=together)

    @property
    def _p(self) -> Precision:
        return PRECISIONS[self.run.flow.dtype]


@dataclass(frozen=True, eq=False)
class OwnBlock(BlockRun, OwnRun):
    """A block on what was recorded of it, with what rounding may leave at its points."""

    _spread_of: dict[str, Spread | None] = field(default_factory=dict)
    _attention: list[Attention] = field(default_factory=list)

    def scores_off(self) -> Array:
        """What a router's score may be off by, `[n]`: what its steps leave, or a whole run."""
        router = self.known("ffn_router")
        if self.choosing.off is not None or router is None:
            return super().scores_off()
        spread = self.spreads.get("ffn_router")
        if spread is not None:
            return np.asarray(ELEMENT * np.max(spread.whole, axis=1))
        config = self.flow.config
        layers = {} if config is None else {"n_layers": config.n_layers}
        most = limit_for("ffn_router", self.flow.dtype, "total", **layers).row_err
        return np.asarray(most * np.linalg.norm(router, axis=1))

    @property
    def spreads(self) -> BlockSpreads:
        """By neutral name."""
        # Kept here, and not the other way round too: what refers to each other stays until it is looked for,
        # and a block's tensors are large.
        return BlockSpreads(self, self._spread_of, self._attention)

    def forget(self) -> None:
        """The same, and of what rounding may leave."""
        super().forget()
        self._spread_of.clear()

    def forget_attention(self) -> None:
        """The same, and with what its inputs are off by."""
        super().forget_attention()
        for point in TO_THE_CONTEXT:
            self._spread_of.pop(point, None)
        self._attention.clear()

    def let_go_of_parts(self) -> None:
        """The same, and with what its inputs are off by."""
        super().let_go_of_parts()
        for one in self._attention:
            one.let_go()

    def _anew(self, **changed: Any) -> Self:
        return replace(self, **changed, _computed={}, _floats={}, _ties={}, _spread_of={}, _attention=[])
