"""What somebody's function should give where it declares what it rounds.

Each of its points is computed from the nearest ones that are known, those that it shows among them, rounded
where it says that it rounds; beside that float32's limits hold. A call of the oracle names its arguments, not
its points: which is which follows from the step that the function makes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.arithmetic.formats import rounded
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.comparing.block_run import Given
from llama_ckpt.comparing.dataflow import STEPS, Flow
from llama_ckpt.comparing.declared import Declared
from llama_ckpt.comparing.declared_block import DeclaredBlock
from llama_ckpt.comparing.declared_head import DeclaredHead
from llama_ckpt.judging.spread import Spread
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.patched_oracle import PatchedOracle
from llama_ckpt.points import Case, block_input, block_point, split_name

__all__ = ["DeclaredCase", "DeclaredFunction"]

Array: TypeAlias = NDArray[Any]

Answers: TypeAlias = tuple[dict[str, Array], dict[str, Spread], dict[str, float]]
"""By full name: what a point should be, what rounding may leave there, what the arithmetic costs."""


@dataclass(frozen=True)
class DeclaredFunction:
    """A function that rounds as declared, on one recording.

    Attributes:
        arithmetic: what it rounds.
        weights, config: the model's, as the oracle takes them.
        positions: `[n]`.
    """

    arithmetic: Arithmetic
    weights: Any
    config: Any
    positions: NDArray[np.int64]

    @cached_property
    def declared(self) -> Declared:
        """As it holds for this many rows."""
        return Declared.of(self.arithmetic, len(self.positions), "F32")

    def case(self, case: Case, exact: Mapping[str, Array]) -> DeclaredCase | None:
        """One call; None of a function whose steps round nothing that could be declared.

        Args:
            exact: the oracle's answers, whose shapes theirs must have.
        """
        number, point = split_name(case.returns[0])
        inputs = self._inputs(case, point)
        if inputs is None and case.function != "embed":
            return None
        return DeclaredCase(self, case, exact, number, inputs or {})

    @staticmethod
    def _inputs(case: Case, point: str) -> dict[str, Array] | None:
        """The call's inputs by the neutral names of their points; "in" for a block's or the head's."""
        if case.function in ("block", "output_logits") or point == "output_norm":
            return {"in": np.asarray(case.arguments["x"])}
        step = next((one for one in STEPS if one.function == case.function and point in one.points), None)
        if step is None:
            return None
        parameters = inspect.signature(getattr(oracle, case.function)).parameters.values()
        names = [one.name for one in parameters if one.default is one.empty]
        read = zip(step.inputs, names, strict=False)
        return {name: np.asarray(case.arguments[argument]) for name, argument in read}

    def run(
        self, number: int | None, given: Array | None, known: Mapping[str, Array]
    ) -> DeclaredBlock | DeclaredHead:
        """A block, or what follows them, on what is known of it."""
        start = Given(None if given is None else np.asarray(given, np.float64))
        if number is None:
            return DeclaredHead(start, self.weights, self.config, "float32", known, declared=self.declared)
        flow = Flow(self.config, self.positions, "float32")
        return DeclaredBlock(flow, number, start, self.weights.blocks[number], known, declared=self.declared)

    def steps_of(self, seen: Mapping[str, Any]) -> Iterator[tuple[str, Array, Spread | None, float]]:
        """Of a whole run that shows its points, each on those that it is made from.

        Yields:
            the full name, what it should be, what rounding may leave, what the arithmetic costs.
        """
        arrays = {name: _float64(x) for name, x in seen.items()}
        for number in [*range(self.config.n_layers), None]:
            last = block_point(self.config.n_layers - 1, "out")
            start = arrays.get(last if number is None else block_input(number))
            names = [name for name in arrays if split_name(name)[0] == number and name != "embd"]
            if start is None or not names:
                continue
            run = self.run(number, start, {split_name(name)[1]: arrays[name] for name in names})
            for name in names:
                point = split_name(name)[1]
                if point in run:
                    yield name, run[point], run.spreads.get(point), run.costs(point)

    def whole(self, function: str) -> PatchedOracle:
        """The oracle in which this function alone rounds."""
        by = self.declared.oracle

        def rounding(right: PatchedOracle, *args: Any, **options: Any) -> Any:
            return getattr(by, function)(*args, **options)

        return PatchedOracle({function: rounding})


@dataclass(frozen=True)
class DeclaredCase:
    """One call of such a function.

    Attributes:
        by: the function. case: the call. exact: the oracle's answers.
        number: the block's; None outside of the blocks.
        inputs: what goes in, by neutral name.
    """

    by: DeclaredFunction
    case: Case
    exact: Mapping[str, Array]
    number: int | None
    inputs: Mapping[str, Array]

    def answers(self, made: Mapping[str, Any]) -> Answers:
        """What its points should be.

        Args:
            made: what their function shows and returns by full name; {}: on the call's inputs alone.
        """
        if self.case.function == "embed":
            (name,) = self.exact
            rows = rounded(self.exact[name], self.by.arithmetic.embeddings)
            return {name: rows}, {}, {name: 0.0}
        known = {point: x for point, x in self.inputs.items() if point != "in"} | self._reliable(made)
        run = self.by.run(self.number, self.inputs.get("in"), known)
        points = {name: split_name(name)[1] for name in self.exact}
        spreads = {name: run.spreads.get(point) for name, point in points.items()}
        alone = len(known) <= len(self.inputs) + len(self.case.returns)  # nothing inside is shown
        costs = {name: self._cost(name, run[p]) if alone else run.costs(p) for name, p in points.items()}
        found = {name: spread for name, spread in spreads.items() if spread is not None}
        return {name: run[point] for name, point in points.items()}, found, costs

    def _cost(self, name: str, o: Array) -> float:
        """How far the whole call's roundings put a point."""
        exact = np.asarray(self.exact[name], np.float64)
        return float(np.linalg.norm(o - exact)) / (float(np.linalg.norm(exact)) or 1.0)

    def _reliable(self, made: Mapping[str, Any]) -> dict[str, Array]:
        """Theirs by neutral name, those that others can be computed from."""
        arrays = {name: _float64(x) for name, x in made.items() if name in self.exact}
        return {
            split_name(name)[1]: x
            for name, x in arrays.items()
            if x.shape == np.shape(self.exact[name]) and np.isfinite(x).all()
        }


def _float64(x: Any) -> Array:
    return x.detach().double().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float64)
