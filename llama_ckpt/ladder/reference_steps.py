"""llama.cpp's own steps, held to the arithmetic that its program declares.

Where it rounds on purpose, as before each product with a quantized weight, its tensor is far from exact and
all of that is right. So it is asked what the rounding costs and what is left beside it: what is left must be
float32's, or a kernel of llama.cpp is wrong, or the recording is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.profiles import PROFILES
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.comparing.block_run import Given
from llama_ckpt.comparing.dataflow import Flow
from llama_ckpt.comparing.declared import Declared
from llama_ckpt.comparing.declared_block import DeclaredBlock
from llama_ckpt.comparing.declared_head import DeclaredHead
from llama_ckpt.dumps.manifest import Producer
from llama_ckpt.judging.limits import limit_for, within
from llama_ckpt.judging.verdict import PointVerdict, causal_mask, judge
from llama_ckpt.points import BLOCK_POINTS, POINTS, block_input, block_point, split_name

__all__ = ["ReferenceSteps", "arithmetic_of_recording"]

Array: TypeAlias = NDArray[Any]

HEAD = ("output_norm", "logits")


def arithmetic_of_recording(producer: Producer) -> Arithmetic | None:
    """The profile of the program that was recorded; None where it is not known what that rounds.

    Other instruction sets have other kernels: their rounding was not read.
    """
    flash, cache = producer.flash_attention, (producer.type_k, producer.type_v)
    if producer.backend == "cuda":
        return PROFILES["llama.cpp-cuda"] if not flash and cache == ("f32", "f32") else None
    if producer.backend != "cpu" or "AVX2 = 1" not in producer.system_info:
        return None
    name = {
        (False, ("f32", "f32")): "llama.cpp-cpu",
        (False, ("f16", "f16")): "llama.cpp-cpu-f16-cache",
        (True, ("f16", "f16")): "llama.cpp-cpu-flash",
    }.get((flash, cache))
    return None if name is None else PROFILES[name]


@dataclass(frozen=True)
class ReferenceSteps:
    """One recording's steps.

    Attributes:
        tensors: what was recorded, by full name.
        positions: `[n]`.
        arithmetic: what the recorded program rounds.
        weights, config: the model's, as the oracle takes them.
    """

    tensors: Mapping[str, Array]
    positions: NDArray[np.int64]
    arithmetic: Arithmetic
    weights: Any
    config: Any
    _runs: dict[int | None, DeclaredBlock | DeclaredHead] = field(default_factory=dict)

    @cached_property
    def declared(self) -> Declared:
        """The arithmetic as it holds for this many rows."""
        return Declared.of(self.arithmetic, len(self.positions), "F32")

    def told(self, found: PointVerdict, max_abs: float | None) -> PointVerdict:
        """A verdict by which llama.cpp is off, with what its arithmetic costs and what is left beside.

        Args:
            found: on the own error of a tensor of ours.
            max_abs: the checkpoint's absolute limit, which holds here as it does for float32 weights.
        """
        number, point = split_name(found.name)
        run = self._run(number)
        if run is None or found.name not in self.tensors or point not in run:
            return found
        r, o = np.asarray(self.tensors[found.name], np.float64), run[point]
        mask = causal_mask(self.positions) if POINTS[point].causal else None
        limit, spread = limit_for(found.name, "float32", "own"), run.spreads.get(point)
        most = 0.0
        if spread is not None:
            limit = within(limit, spread, o, mask)
            most = 0.0 if spread.most is None else float(np.max(spread.most))
        left = judge(found.name, r, o, limit=limit, mask=mask, dtype=limit.dtype)
        reason = left.reason if left.verdict == "fail" else ""
        if not reason and max_abs is not None:
            largest = max_abs * max(1.0, float(np.abs(r if mask is None else r[self._seen(r)]).max())) + most
            if left.max_abs > largest:
                reason = f"max|llama.cpp - its own arithmetic| {left.max_abs:.2e} > allowed {largest:.2e}"
        return told(found, self.arithmetic.name, run.costs(point), left.err, reason)

    def _seen(self, r: Array) -> NDArray[np.bool_]:
        return np.broadcast_to(causal_mask(self.positions), r.shape)

    def _run(self, number: int | None) -> DeclaredBlock | DeclaredHead | None:
        """A block, or what follows them, on what was recorded; None where its input was not."""
        if number not in self._runs:
            last = self.config.n_layers - 1
            start = self.tensors.get(block_point(last, "out") if number is None else block_input(number))
            if start is None:
                return None
            self._runs.clear()  # one at a time: a block's tensors are large
            self._runs[number] = self._made(number, Given(np.asarray(start, np.float64)))
        return self._runs[number]

    def _made(self, number: int | None, given: Given) -> DeclaredBlock | DeclaredHead:
        if number is None:
            theirs = {name: self.tensors[name] for name in HEAD if name in self.tensors}
            shared = given, self.weights, self.config, "float32", theirs
            return DeclaredHead(*shared, declared=self.declared)
        names = {point.name: block_point(number, point.name) for point in BLOCK_POINTS}
        theirs = {point: self.tensors[name] for point, name in names.items() if name in self.tensors}
        flow = Flow(self.config, self.positions, "float32")
        return DeclaredBlock(flow, number, given, self.weights.blocks[number], theirs, declared=self.declared)


def told(found: PointVerdict, name: str, costs: float, left: float, reason: str) -> PointVerdict:
    """A verdict with the two numbers, and what was broken where the arithmetic does not explain it."""
    said = f"its arithmetic ({name}) costs {costs:.1e} in this step, left {left:.1e}"
    if reason:
        said += f", which is not float32's: {reason}"
    return found.with_arithmetic(f"{found.reason}; {said}", name, costs, left, explained=not reason)
