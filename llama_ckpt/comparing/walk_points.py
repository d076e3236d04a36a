"""One point of somebody's dump: taken, fitted to its axes, judged, and kept with what was found.

The ground that `Walk` stands on: it decides where to go, this what is said there. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.comparison import ComparedPoint, Comparison, LayerErrors, LintFinding
from llama_ckpt.comparing.dataflow import BlockFlow
from llama_ckpt.comparing.explaining import Explainer
from llama_ckpt.comparing.fitting import fit
from llama_ckpt.comparing.lint import Scan
from llama_ckpt.comparing.sides import Sides
from llama_ckpt.dumps.names_map import interleave_halves
from llama_ckpt.judging.limits import ErrorKind, Limit, limit_for, within
from llama_ckpt.judging.metrics import relative_error
from llama_ckpt.judging.rounded_run import RoundedRun, at_least
from llama_ckpt.judging.rounding import Spread, spreads_of
from llama_ckpt.judging.tally import row_errors
from llama_ckpt.judging.verdict import PointVerdict, causal_mask, judge
from llama_ckpt.points import BLOCK_POINTS, POINTS, Case, block_point, split_name

__all__ = ["ENDS", "SAME", "TURNED", "Array", "PointJudge", "known_error", "made", "not_finite"]

Array: TypeAlias = NDArray[Any]

ENDS = ("embd", "output_norm", "logits")
"""The points outside the blocks."""

TURNED = ("q", "k", "q_rope", "k_rope")
"""The points whose features lie in RoPE's pairs."""

SAME = 0.01
"""Relative error below which a tensor is taken for another layer's: any precision is nearer than that."""


WORTH_ASKING = 1000.0
"""A total error so many times too large is no rounding on any model, and is not asked about."""


@dataclass
class PointJudge:
    """What a walk keeps, and what it says of one point; fills a `Comparison`."""

    sides: Sides
    scan: Scan
    result: Comparison
    progress: Callable[[str, int, int], None] | None = None
    half_split: bool | None = None
    shifts: dict[str, int] = field(default_factory=dict)
    explainer: Explainer = field(default_factory=Explainer)
    ends: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    start_spread: Array | None = None  # of what goes into a block, where it is not theirs
    rounded: RoundedRun | None = None
    _limits: dict[tuple[str, str], Limit] = field(default_factory=dict)
    _fitted: dict[tuple[str, str], int] = field(default_factory=dict)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Where `attn_scores` are judged."""
        return causal_mask(self.sides.positions)

    # -- their tensors ------------------------------------------------------------------------------

    def take(self, name: str, expected: Callable[[], Array | None]) -> Array | None:
        """Their tensor at a point, fitted to its axes; None where there is none or nothing fits."""
        block, point = split_name(name)
        source = name if block is None else block_point(block - self.shifts.get(point, 0), point)
        if source not in self.sides.theirs.names:
            return None
        fitted = fit(name, self.sides.theirs.read(source, self.sides.sizes), self.sides.sizes, expected)
        if fitted.finding is not None:
            self._once(fitted.finding)
        if fitted.note is not None:
            self._note(point, fitted.note)
        array = fitted.array
        if array is not None and self.half_split and point in TURNED:
            array = interleave_halves(array)
        return array

    def _once(self, finding: LintFinding) -> None:
        """One finding of a kind for each point, with the number of blocks that have it too."""
        key = (finding.kind, split_name(finding.point)[1])
        if key not in self._fitted:
            self._fitted[key] = len(self.result.findings)
            self.result.findings.append(finding)
            return
        index = self._fitted[key]
        first = self.result.findings[index]
        if not first.message.endswith("in other blocks too"):
            self.result.findings[index] = replace(first, message=f"{first.message}; in other blocks too")

    def _note(self, point: str, note: str) -> None:
        if ("note", point) not in self._fitted:
            self._fitted["note", point] = 1
            self.result.notes.append(note)

    def _reference(self, name: str) -> Array | None:
        dump = self.sides.dump
        return dump[name] if dump is not None and name in dump else None

    def _limit(self, name: str, error_kind: ErrorKind) -> Limit:
        """What held there; before it was judged the table's.

        Against a reference that rounds its activations, what its rounding needs.
        """
        if (name, error_kind) in self._limits:
            return self._limits[name, error_kind]
        dtype = self.sides.dtype
        if self.sides.weights is None and error_kind == "total" and not self.sides.tight:
            record = self.sides.dumps.manifest.model if self.sides.dumps else None
            half = record is not None and set(record.tensor_types) <= {"F16", "F32"}
            dtype = "float16" if half and dtype != "bfloat16" else "bfloat16"
        return limit_for(name, dtype, error_kind, n_layers=self.sides.n_layers)

    def _judge_step(
        self,
        theirs: Mapping[str, Array],
        right: Mapping[str, Array],
        flow: BlockFlow,
        number: int | None,
        whole: tuple[Case, Mapping[str, Array]] | None,
    ) -> None:
        """Judge points of one block, or those outside of the blocks where `number` is None."""
        # Of blocks gone through only the numbers are kept: limits of each element are as large as tensors.
        self._limits = {key: limit.uniform for key, limit in self._limits.items()}
        order = [p.name for p in BLOCK_POINTS] if number is not None else ENDS
        judged: dict[str, ComparedPoint] = {}
        for point in order:
            if point not in theirs:
                continue
            name = point if number is None else block_point(number, point)
            own = self._judge(
                name, theirs[point], flow.computed.get(point), "own", None, flow.spreads.get(point)
            )
            reference = self._reference(name)
            total = self._judge(name, theirs[point], right.get(point), "total", reference)
            if (
                total is not None
                and own is not None
                and own.verdict == "pass"
                and self._may_be_rounding(total)
            ):
                self._widen(name, right[point])
                total = self._judge(name, theirs[point], right[point], "total", reference)
            if own is None and total is None:
                continue  # the reference has no such tensor, and there is no model to compute it
            read = flow.read.get(point, ())
            compared = ComparedPoint(name, own, total, read, flow.replaced.get(point, ()))
            judged[point] = replace(compared, made=made(compared, theirs))
            if point in (*ENDS, "out") and point in right:
                self.ends[name] = theirs[point], right[point]
        self.result.points += judged.values()
        self.result.compared += sum(c.own is not None or c.total is not None for c in judged.values())
        self.explainer.explain(judged, theirs, flow, whole, right, self.mask, self._limit)

    def _may_be_rounding(self, total: PointVerdict) -> bool:
        """Whether a total error beyond the table's limit is worth asking what rounding comes to here."""
        if total.verdict == "pass" or self.rounded is None or not total.err < WORTH_ASKING * total.limit:
            return False
        return all(point.made != "here" for point in self.result.points)

    def _widen(self, name: str, o: Array) -> None:
        """Hold a point's total error to what rounding at random comes to on this model and prompt."""
        assert self.rounded is not None
        block, point = split_name(name)
        draws = self.rounded.head() if block is None else self.rounded.block(block)
        mask = self.mask if POINTS[point].causal else None
        self._limits[name, "total"] = at_least(self._limit(name, "total"), o, draws, point, mask)

    def _judge(
        self,
        name: str,
        x: Array,
        o: Array | None,
        error_kind: ErrorKind,
        r: Array | None,
        spread: Spread | None = None,
    ) -> PointVerdict | None:
        if o is None:
            return None
        limit = self._limit(name, error_kind)
        mask = self.mask if POINTS[split_name(name)[1]].causal else None
        if spread is not None and x.shape == o.shape:
            limit = self._limits[name, error_kind] = within(limit, spread, o, mask)
        if self.sides.weights is None and error_kind == "total":
            r = None  # there o is llama.cpp's already
        if limit.exact and self.sides.dtype == "float32" and r is not None and r.shape != x.shape:
            r = None
        self.result.tally.add(name, "own" if error_kind == "own" else "total", x, o, mask)
        return judge(name, x, o, limit=limit, r=r, mask=mask, dtype=limit.dtype)

    def _layer(
        self,
        number: int,
        exact_in: Array | None,
        start: Array | None,
        exact_out: Array,
        from_input: Array | None,
        end: Array | None,
        whole: Case | None = None,
    ) -> None:
        """How much of the error at a block's end is its own; whole: the block's call on their input."""
        name = block_point(number, "out")
        reference = self._reference(name)
        came_in = known_error(start, exact_in)
        inherited, own = known_error(from_input, exact_out), known_error(end, from_input)
        limit = limit_for(name, self.sides.dtype, "own")
        # What rounding leaves of this very block costs another run of it: asked where the table is exceeded.
        if whole is not None and from_input is not None and own > limit.err:
            limit = within(limit, spreads_of(whole, {name: from_input}, self.sides.dtype)[name], from_input)
        self.result.layers.append(
            LayerErrors(
                number,
                own=own,
                inherited=inherited,
                total=known_error(end, exact_out),
                reference=known_error(reference, exact_out) if from_input is not None else np.nan,
                amplification=inherited / came_in if came_in > 0 else np.nan,
                own_limit=limit.err,
                limit=self._limit(name, "total").err,
                row_errs=() if end is None else tuple(row_errors(end, exact_out).tolist()),
            )
        )


def known_error(x: Array | None, o: Array | None) -> float:
    """The relative error; NaN where one is missing or their shapes differ."""
    if x is None or o is None or x.shape != o.shape:
        return float("nan")
    return relative_error(x, o)


def made(point: ComparedPoint, theirs: Mapping[str, Array]) -> Any:
    """Whether the error is made here; a NaN that came with an input was not."""
    wrong_total = point.total is not None and point.total.verdict == "fail"
    if point.own is None:
        return "unknown" if wrong_total else ""
    if point.own.verdict == "fail":
        broken = not_finite(theirs, [split_name(point.name)[1]])
        return "inherited" if broken and not_finite(theirs, point.read) else "here"
    return "inherited" if wrong_total else ""


def not_finite(theirs: Mapping[str, Array], points: Sequence[str]) -> bool:
    """Whether one of their tensors at these points holds a NaN or an infinity."""
    return any(point in theirs and not np.isfinite(theirs[point]).all() for point in points)
