"""How data flows through a block, step by step, so that each step can be asked on somebody's own inputs.

    in -> attn_norm -> q, k, v -> q_rope, k_rope -> (scores, probs, context) attn_out
       -> ffn_inp = in + attn_out
       -> ffn_norm -> (gate, up, swiglu) ffn_out -> out = ffn_inp + ffn_out

A step's inputs are theirs where they recorded them, and the oracle's, computed from the nearest ones that
they did record, where they did not. So the error of a step's output is the error made since those. The
steps are the oracle's functions; numpy only.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.patched_oracle import answers
from llama_ckpt.judging.rounding import Spread, case_spreads, sum_spread
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import BLOCK_INPUT, BLOCK_POINTS, Case, Point, block_point

__all__ = ["STEPS", "BlockFlow", "Flow", "FlowStep", "block_case", "steps_of", "whole_block"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class FlowStep:
    """One step: the oracle's function, the points that it reads, those that it gives and those it shows."""

    function: str
    inputs: tuple[str, ...]
    returns: tuple[str, ...]
    taps: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[str, ...]:
        """The points that it makes."""
        return (*self.taps, *self.returns)


def steps_of(points: Sequence[Point]) -> tuple[FlowStep, ...]:
    """The steps that make these points of a block; neighbours that one function makes are one step."""
    steps = []
    for (function, reads), group in groupby(points, lambda point: (point.function, point.reads)):
        made = list(group)
        returns = tuple(point.name for point in made if not point.inner)
        steps.append(FlowStep(function, reads, returns, tuple(point.name for point in made if point.inner)))
    return tuple(steps)


STEPS = steps_of(BLOCK_POINTS)
"""The steps of a block, in order."""


@dataclass(frozen=True)
class BlockFlow:
    """What the oracle makes of each step of one block on somebody's inputs.

    Attributes:
        computed: each point that could be computed, by neutral name.
        cases: for each the call that it answers, with the arguments used; the residual sums have the
            whole block's.
        replaced: for each the inputs that were not recorded and were computed instead.
        read: for each the points that its step reads.
        spreads: for each what rounding may leave there since the nearest inputs that they recorded.
    """

    computed: dict[str, Array] = field(default_factory=dict)
    cases: dict[str, Case] = field(default_factory=dict)
    replaced: dict[str, tuple[str, ...]] = field(default_factory=dict)
    read: dict[str, tuple[str, ...]] = field(default_factory=dict)
    spreads: dict[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True)
class Flow:
    """The model that steps are computed with.

    Attributes:
        config: its shape; None without a model: then only what needs no weights is computed.
        positions: `[n]`.
        dtype: what their program computes in.
    """

    config: Any
    positions: NDArray[np.int64]
    dtype: str

    def block(
        self,
        number: int,
        theirs: Mapping[str, Array],
        start: Array | None,
        weights: Any,
        start_spread: Array | None = None,
    ) -> BlockFlow:
        """Compute every step of block `number` that can be.

        Args:
            theirs: their tensors of this block by neutral name, those that can be relied on.
            start: the block's input, theirs or computed; None where nobody knows it.
            weights: the block's; None without a model.
            start_spread: how far rounding may have put a start that was computed; None where it is theirs.
        """
        flow = BlockFlow()
        off: dict[str, Array] = {} if start_spread is None else {BLOCK_INPUT: start_spread}
        known: dict[str, Array] = {BLOCK_INPUT: start} if start is not None else {}
        whole = None if start is None or weights is None else self.block_case(number, start, weights)
        for step in STEPS:
            known |= {p: theirs[p] for p in step.inputs if p in theirs}
            if any(point not in known for point in step.inputs):
                continue
            inputs = [known[point] for point in step.inputs]
            case = whole if step.function == "add" else self._case(number, step, inputs, weights)
            if step.function == "add":
                made = {step.returns[0]: inputs[0] + inputs[1]}
                carried = (off.get(point) for point in step.inputs)
                flow.spreads[step.returns[0]] = sum_spread(inputs[0], inputs[1], self.dtype, *carried)
            elif weights is not None and case is not None:
                found = answers(getattr(oracle, step.function), case)
                made = {name.rpartition(".")[2]: array for name, array in found.items()}
                named = dict(zip(case.arguments, step.inputs, strict=False))
                came = {name: off[point] for name, point in named.items() if point in off}
                spreads = case_spreads(step.function, case.arguments, made, self.dtype, carried=came)
                flow.spreads.update(spreads)
            else:
                made = _without_weights(step, inputs, self.positions)
            for point, array in made.items():
                flow.computed[point] = array
                flow.read[point] = step.inputs
                flow.replaced[point] = tuple(p for p in step.inputs if p not in theirs and p != BLOCK_INPUT)
                if case is not None:
                    flow.cases[point] = case
            known |= {point: array for point, array in made.items() if point not in theirs}
            unseen = (point for point in made if point not in theirs and point in flow.spreads)
            off |= {point: flow.spreads[point].whole for point in unseen}
        return flow

    def block_case(self, number: int, start: Array, weights: Any) -> Case:
        """The call of the whole block."""
        return block_case(number, start, weights, self.config, self.positions)

    def _case(self, number: int, step: FlowStep, inputs: list[Array], weights: Any) -> Case | None:
        """The call of one step; None without weights."""
        if weights is None:
            return None
        returns = tuple(block_point(number, point) for point in step.returns)
        taps = {point: block_point(number, point) for point in step.taps}
        return Case(step.function, self._arguments(step, inputs, weights), returns, taps)

    def _arguments(self, step: FlowStep, inputs: list[Array], weights: Any) -> dict[str, Any]:
        """What the step's function takes: the points it reads come first, the rest goes by name."""
        parameters = inspect.signature(getattr(oracle, step.function)).parameters.values()
        wanted = [one.name for one in parameters if one.default is one.empty]
        given = dict(zip(wanted, inputs, strict=False))
        return given | {name: self._named(name, step, weights) for name in wanted[len(inputs) :]}

    def _named(self, name: str, step: FlowStep, weights: Any) -> Any:
        """An argument that is no recorded tensor: positions, a weight, or a number of the configuration."""
        if name == "positions":
            return self.positions
        if name == "frequencies":
            return oracle.rope_frequencies(self.config)
        if name == "eps":
            return self.config.rms_norm_eps
        if name == "weight":  # of a norm: it is called as the point that the norm makes
            return getattr(weights, step.returns[0])
        return getattr(weights, name) if hasattr(weights, name) else getattr(self.config, name)


def _without_weights(step: FlowStep, inputs: list[Array], positions: NDArray[np.int64]) -> dict[str, Array]:
    """What a step shows that takes no weights: attention up to its context."""
    if step.function != "attention":
        return {}
    q, k, v = inputs
    case = Case(
        "attention",
        {"q": q, "k": k, "v": v, "wo": np.eye(q.shape[1] * q.shape[2]), "positions": positions},
        ("attn_out",),
        {point: point for point in step.taps},
    )
    found = answers(oracle.attention, case)
    return {point: found[point] for point in step.taps}


def block_case(number: int, start: Array, weights: Any, config: Any, positions: Any) -> Case:
    """The call of the whole of block `number` on its input, every point of it named."""
    arguments = {"x": start, "weights": weights, "config": config, "positions": positions}
    taps = {point.name: block_point(number, point.name) for point in BLOCK_POINTS if point.name != "out"}
    return Case("block", arguments, (block_point(number, "out"),), taps)


def whole_block(case: Case) -> dict[str, Array]:
    """Every point of a block by neutral name, from a `block_case`."""
    return {name.rpartition(".")[2]: array for name, array in answers(oracle.block, case).items()}
