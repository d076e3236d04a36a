"""The calls of the oracle that a block is made of, with the arguments that somebody's own inputs give.

`BlockRun` computes each point from the nearest recorded ones; who tries bugs needs the whole function that
a point comes from, since a bug is a change of a function. numpy only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.nearest import step_reads
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import BLOCK_POINTS, Case, Point, block_point, points_in_block

__all__ = ["STEPS", "Flow", "FlowStep", "steps_of"]

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

EXPERT_STEPS = steps_of(points_in_block(experts=True))
"""The same of a mixture of experts."""


@dataclass(frozen=True)
class Flow:
    """The model that steps are computed with.

    Attributes:
        config: its shape; None without a model: then only what needs no weights is computed.
        positions: `[n]`.
        dtype: what their program computes in.
        n_used: of a mixture how many experts compute a token; 0 for a dense model.
    """

    config: Any
    positions: NDArray[np.int64]
    dtype: str
    n_used: int = 0

    @property
    def experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        return self.n_used > 0

    @property
    def points(self) -> tuple[Point, ...]:
        """The points of a block."""
        return points_in_block(experts=self.experts)

    def reads(self, point: str) -> tuple[str, ...]:
        """The points that the step which makes `point` reads, by neutral name."""
        return step_reads(point, experts=self.experts)

    def step(self, point: str) -> FlowStep:
        """The step that makes a point."""
        steps = EXPERT_STEPS if self.experts else STEPS
        return next(step for step in steps if point in step.points)

    def block_case(self, number: int, start: Array, weights: Any) -> Case:
        """The call of the whole of block `number` on its input, every point of it named."""
        arguments = {"x": start, "weights": weights, "config": self.config, "positions": self.positions}
        taps = {point.name: block_point(number, point.name) for point in self.points if point.name != "out"}
        return Case("block", arguments, (block_point(number, "out"),), taps)

    def case(self, number: int, step: FlowStep, inputs: Sequence[Array], weights: Any) -> Case:
        """The call of one step of block `number` on these inputs."""
        returns = tuple(block_point(number, point) for point in step.returns)
        taps = {point: block_point(number, point) for point in step.taps}
        return Case(step.function, self._arguments(step, inputs, weights), returns, taps)

    def _arguments(self, step: FlowStep, inputs: Sequence[Array], weights: Any) -> dict[str, Any]:
        """What the step's function takes: the points it reads come first, the rest goes by name."""
        parameters = inspect.signature(getattr(oracle, step.function)).parameters
        wanted = [name for name, one in parameters.items() if one.default is one.empty]
        given = dict(zip(wanted, inputs, strict=False))
        named = {name: self._named(name, step, weights) for name in wanted[len(inputs) :]}
        magnitude = oracle.rope_magnitude(self.config) if step.function == "rope" else 1.0
        biases = [name for name, one in parameters.items() if name.startswith("b") and one.default is None]
        more = {name: bias for name in biases if (bias := getattr(weights, name, None)) is not None}
        return {**given, **named, **more, **({} if magnitude == 1.0 else {"magnitude": magnitude})}

    def _named(self, name: str, step: FlowStep, weights: Any) -> Any:
        """An argument that is no recorded tensor: positions, a weight, or a number of the configuration."""
        if name == "positions":
            return self.positions
        if name == "frequencies":
            return oracle.rope_frequencies(self.config)
        if name == "eps":
            return self.config.rms_norm_eps
        if name == "n_used":
            return self.n_used
        if name == "weight":  # of a norm: it is called as the point that the norm makes
            return getattr(weights, step.returns[0])
        return getattr(weights, name) if hasattr(weights, name) else getattr(self.config, name)
