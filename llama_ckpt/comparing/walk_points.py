"""One point of somebody's dump: taken, fitted to its axes, judged, and kept with what was found.

The ground that `Walk` stands on: it decides where to go, this what is said there. numpy only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.either import choices
from llama_ckpt.comparing.block_run import MATRICES
from llama_ckpt.comparing.comparison import ComparedPoint, Comparison, LintFinding
from llama_ckpt.comparing.declared import Declared
from llama_ckpt.comparing.declared_block import DeclaredBlock
from llama_ckpt.comparing.declared_head import DeclaredHead
from llama_ckpt.comparing.explaining import Explainer
from llama_ckpt.comparing.fitting import fit
from llama_ckpt.comparing.head_run import FixedRun
from llama_ckpt.comparing.large import LARGE, rows_of
from llama_ckpt.comparing.letting_go import let_go_of_attention
from llama_ckpt.comparing.nearest import DataFlow, Nearest
from llama_ckpt.comparing.noisy_run import NoisyRun
from llama_ckpt.comparing.own_run import OwnRun
from llama_ckpt.comparing.router_ties import RouterTies, judged_at, unjudged
from llama_ckpt.comparing.scan import Scan
from llama_ckpt.comparing.sides import Sides
from llama_ckpt.comparing.undeclared import Undeclared, part_of
from llama_ckpt.comparing.unrounded import Unrounded
from llama_ckpt.comparing.where_made import compared_point
from llama_ckpt.dumps.names_map import interleave_halves
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.judging.by_rows import judge_by_rows
from llama_ckpt.judging.error_maps import error_maps, wrong_rows
from llama_ckpt.judging.limits import ErrorKind, Limit, limit_for, within
from llama_ckpt.judging.near_ties import Rows, is_choice
from llama_ckpt.judging.rounded_run import RoundedRun, at_least
from llama_ckpt.judging.verdict import PointVerdict, causal_mask, judge
from llama_ckpt.points import ALL_POINTS, block_point, split_name

__all__ = ["ENDS", "SAME", "TURNED", "Array", "WORTH_ASKING", "PointJudge"]

Array: TypeAlias = NDArray[Any]

ENDS = ("embd", "output_norm", "logits")
"""The points outside the blocks."""

TURNED = ("q", "k", "q_rope", "k_rope")
"""The points whose features lie in RoPE's pairs."""

SAME = 0.01
"""Relative error below which a tensor is taken for another layer's: any precision is nearer than that."""

HELD = 1 << 24
"""A tensor of so many elements is held at once where need be: 128 MB in float64."""

NOTHING = np.empty(0)

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
    ends: dict[str, tuple[Array, Mapping[str, Array]]] = field(default_factory=dict)
    recorded: dict[str, bool] = field(default_factory=dict)
    """Every point gone through that they recorded, and whether it can be relied on: whether it is finite."""
    rounded: RoundedRun | NoisyRun | None = None  # from the tokens
    rounded_since: RoundedRun | NoisyRun | None = None  # from the last end of a block that they recorded
    unrounded: Unrounded | None = None  # beside a declared run
    undeclared: Undeclared | None = None  # where nothing was declared
    explains: bool = True  # what is wrong, which may cost more than to find it
    last_row: bool = False  # logits are those of the last token alone
    router_ties: RouterTies = field(default_factory=RouterTies)
    ties: Rows | None = None  # tokens that the exact run may put through other experts, up to where it is
    chosen: dict[int, Array] = field(default_factory=dict)  # by block, of the exact run
    chosen_since: dict[int, Array] = field(default_factory=dict)  # by block, since the last recorded end
    _limits: dict[tuple[str, str], Limit] = field(default_factory=dict)
    _fitted: dict[tuple[str, str], int] = field(default_factory=dict)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Where `attn_scores` are judged."""
        return causal_mask(self.sides.positions)

    def __post_init__(self) -> None:
        sides = self.sides
        alone = sides.arithmetic is None and not sides.n_used
        if alone and sides.file is not None and sides.dtype == "float32":
            kinds = self._kinds(sides.file)
            self.undeclared = Undeclared(
                len(sides.token_ids), sorted(kinds), kinds.most_common(1)[0][0], self.mask
            )

    @staticmethod
    def _kinds(file: GGUFFile) -> Counter[str]:
        """How many matrices of each type a file has."""
        return Counter(info.type.name for info in file.tensors.values() if len(info.shape) > 1)

    @cached_property
    def declared(self) -> Declared | None:
        """What their program rounds, where it says so and there is a model to round."""
        sides = self.sides
        if sides.arithmetic is None or sides.file is None:
            return None
        kind = self._kinds(sides.file).most_common(1)[0][0]
        return Declared.of(sides.arithmetic, len(sides.token_ids), kind)

    @cached_property
    def data_flow(self) -> DataFlow:
        """What each point is made from."""
        return DataFlow(self.sides.n_layers, self.sides.n_used > 0)

    # -- their tensors ------------------------------------------------------------------------------

    def take(self, name: str, expected: Callable[[], Array | None]) -> Array | None:
        """Their tensor at a point, fitted to its axes; None where there is none or nothing fits."""
        block, point = split_name(name)
        source = name if block is None else block_point(block - self.shifts.get(point, 0), point)
        if source not in self.sides.theirs.names:
            return None
        read = self.sides.theirs.read(source, self.sides.sizes)
        if point == "logits" and read.size == self.sides.sizes["vocab"]:
            self.last_row = len(self.sides.token_ids) > 1
            return read.reshape(1, -1)
        fitted = fit(name, read, self.sides.sizes, expected)
        if fitted.finding is not None:
            self._once(fitted.finding)
        if fitted.note is not None:
            self._note(point, fitted.note)
        array = fitted.array
        if array is not None and self.half_split and point in TURNED:
            array = interleave_halves(array)
        return array

    def reliable(self, theirs: Mapping[str, Array]) -> dict[str, Array]:
        """Those of their tensors that others can be judged by: finite wherever it counts."""
        return {point: x for point, x in theirs.items() if self._is_finite(point, x)}

    def _is_finite(self, point: str, x: Array) -> bool:
        if point == "ffn_chosen":  # numbers of experts, which have to be there
            return bool(is_choice(x, self.sides.sizes["expert"]).all())
        if math.isfinite(float(x.sum())):
            return True
        finite = np.isfinite(x)
        # Scores of keys that nobody sees are often minus infinity, and nothing reads them.
        return bool(finite.all() or (ALL_POINTS[point].causal and (finite | ~self.mask).all()))

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
        if dump is None:
            return None
        if name == "logits" and self.last_row:
            return dump["last_logits"][None] if "last_logits" in dump else None
        return dump[name] if name in dump else None

    # -- judging ------------------------------------------------------------------------------------

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
        run: OwnRun,
        number: int | None,
        whole: OwnRun | None = None,
    ) -> None:
        """Judge points of one block, or those outside of the blocks where `number` is None.

        Args:
            theirs: their tensors by neutral name; right: what they should be; run: on the nearest recorded.
            whole: the oracle's block on what goes into theirs, for whoever tries bugs.
        """
        # Of blocks gone through only the numbers are kept: limits of each element are as large as tensors.
        self._limits = {key: limit.uniform for key, limit in self._limits.items()}
        judged: dict[str, ComparedPoint] = {}
        for point in self.data_flow.inside if number is not None else ENDS:
            if point not in theirs:
                continue
            name = point if number is None else block_point(number, point)
            since = self._since(name)
            self.recorded[name] = self._is_finite(point, theirs[point])
            own, total = self._judge_both(name, theirs[point], right, run, since)
            if own is None and total is None:
                continue  # the reference has no such tensor, and no model computes it
            judged[point] = compared_point(name, own, total, since, self.data_flow, self.recorded)
            let_go_of_attention(point, theirs, (run, right, whole), judged)
            if judged[point].made in ("here", "between", "unknown") and not self.result.wrong_rows:
                self._draw_first(name, theirs[point], run if own else right)
            self.result.points.append(judged[point])
            if point in (*ENDS, "out") and point in right:
                # Of a block's run its end alone is to stay; logits are made again where asked for.
                end = right if point == "logits" else FixedRun({point: right[point]})
                self.ends[name] = theirs[point], end
        self.result.compared += len(judged)
        if self.undeclared is not None:
            self.undeclared.look(run, theirs, judged)
        if self.explains and not (self.undeclared is not None and self.undeclared.waits()):
            self.explainer.explain(judged, theirs, run, whole, right, self.mask, self._limit)

    def _since(self, name: str) -> Nearest:
        """What was recorded before a point, and can be relied on."""
        return self.data_flow.nearest(name, {one for one, ok in self.recorded.items() if ok and one != name})

    def _judge_both(
        self, name: str, x: Array, right: Mapping[str, Array], run: OwnRun, since: Nearest
    ) -> tuple[PointVerdict | None, PointVerdict | None]:
        """The verdicts on the own and on the total error of one point."""
        if self.sides.weights is not None and name != "embd" and not since.recorded:
            # Nothing was recorded before it: what is made since the tokens is all that there is.
            total = self._total(name, x, right)
            if total is not None:
                self._limits[name, "own"] = replace(self._limit(name, "total"), error_kind="own")
            return None if total is None else replace(total, error_kind="own"), total
        own = self._own(name, x, run)
        may_be_rounding = own is not None and own.verdict == "pass"
        return own, self._total(name, x, right, may_be_rounding)

    def _draw_first(self, name: str, x: Array, run: Mapping[str, Array]) -> None:
        """Which rows of the first wrong point are off, and where in them."""
        point = split_name(name)[1]
        if point not in run or x.size > HELD or x.shape != run[point].shape or x.ndim < 2:
            return
        limit = self._limit(name, "own" if (name, "own") in self._limits else "total")
        rows = wrong_rows(x, run[point], self._mask(name, run), limit, len(self.sides.token_ids))
        self.result.wrong_rows = rows
        self.result.tally.first = name, error_maps(x, run[point], limit.err, ALL_POINTS[point].axes)

    def _own(self, name: str, x: Array, run: OwnRun) -> PointVerdict | None:
        """On what was recorded before it."""
        point = split_name(name)[1]
        if point not in run or self.router_ties.hides(name, run):
            return None
        if not run.is_far(point):
            verdict = self._judge(name, x, run, self._limit(name, "own"), near=True)
            if verdict.verdict == "fail":
                run, verdict = self._as_chosen(name, x, run, verdict)
            if isinstance(run, DeclaredBlock | DeclaredHead) and math.isfinite(verdict.err):
                passes = verdict.verdict == "pass"
                self.result.note_arithmetic(name, run.costs(point), verdict.err, passes=passes)
            return verdict
        # Across whole blocks rounding is what it is in a whole run.
        limit = replace(self._limit(name, "total"), error_kind="own")
        verdict = self._judge(name, x, run, limit)
        if verdict.verdict == "fail" and self._is_worth_asking(verdict) and self.rounded_since is not None:
            wider = self._widened(name, limit, run, self.rounded_since)
            verdict = self._judge(name, x, run, wider)
        return verdict

    def _as_chosen(
        self, name: str, x: Array, run: OwnRun, verdict: PointVerdict
    ) -> tuple[OwnRun, PointVerdict]:
        """Judged again as a library may have made the step that a program says it rounds in."""
        if not isinstance(run, DeclaredBlock | DeclaredHead):
            return run, verdict
        held, limit = self._limits[name, "own"], limit_for(name, self.sides.dtype, "own")
        parts = {part_of(split_name(one)[1]) for one in self._since(name).unseen}
        for other in choices(run.by.arithmetic, parts):
            tried = run.declaring(replace(run.by, arithmetic=other))
            again = self._judge(name, x, tried, limit, near=True)
            if again.verdict == "pass":
                return tried, again
        self._limits[name, "own"] = held
        return run, verdict

    def _total(
        self, name: str, x: Array, right: Mapping[str, Array], may_be_rounding: bool = True
    ) -> PointVerdict | None:
        """Of the whole run from the tokens."""
        point = split_name(name)[1]
        if point not in right or self.router_ties.hides(name, right):
            return None
        # Without weights what is right is llama.cpp's already.
        r = None if self.sides.weights is None else self._reference(name)
        if point == "ffn_chosen":  # of a near tie llama.cpp's choice is no better
            r = None
        verdict = self._judge(name, x, right, self._limit(name, "total"), r)
        if verdict.verdict == "pass" or not may_be_rounding or self.rounded is None:
            return verdict
        points = self.result.points
        if self._is_worth_asking(verdict) and not any(one.made in ("here", "between") for one in points):
            limit = self._widened(name, self._limit(name, "total"), right, self.rounded)
            verdict = self._judge(name, x, right, limit, r)
        return verdict

    def _is_worth_asking(self, verdict: PointVerdict) -> bool:
        # Where a program rounds on purpose what comes of float32's last bit may be as large as the roundings.
        return self.declared is not None or verdict.err < WORTH_ASKING * verdict.limit

    def _widened(
        self, name: str, limit: Limit, right: Mapping[str, Array], run: RoundedRun | NoisyRun
    ) -> Limit:
        """What rounding at random comes to on this model and prompt, where that is more."""
        block, point = split_name(name)
        o, mask = right[point], self._mask(name, right)
        draws = run.head() if block is None else run.block(block)
        last = self.last_row and point == "logits"
        if last:
            draws = [{"logits": draw["logits"][-1:]} for draw in draws]
        limit = at_least(limit, o, draws, point, mask)
        if self.unrounded is None:
            return limit
        return self.unrounded.widened(limit, o, block, point, mask, last=last)

    def _judge(
        self,
        name: str,
        x: Array,
        run: Mapping[str, Array],
        limit: Limit,
        r: Array | None = None,
        *,
        near: bool = False,
    ) -> PointVerdict:
        """Judge a tensor against a run of the oracle.

        Args:
            limit: the table's; r: llama.cpp's tensor.
            near: the limit follows from what the run's spreads say of it.
        """
        point = split_name(name)[1]
        if r is not None and r.shape != x.shape:
            r = None
        in_parts = point not in MATRICES or unjudged(name, run) is None
        if x.size >= LARGE and not limit.exact and in_parts:
            verdict, held = self._judge_large(name, x, run, limit, r, near)
        else:
            o, mask = run[point], self._mask(name, run)
            spread = run.spreads.get(point) if near and isinstance(run, OwnRun) else None
            held = limit if spread is None or x.shape != o.shape else within(limit, spread, o, mask)
            self.result.tally.add(name, limit.error_kind, x, o, mask)
            verdict = judge(name, x, o, limit=held, r=r, mask=mask, dtype=limit.dtype)
        self._limits[name, limit.error_kind] = held
        # What equal rows should be is asked for where there are such, and the tensor can be held.
        alike = name in self.scan.rows and x.size <= HELD
        self.scan.hear(name, verdict.verdict == "pass", run[point] if alike else NOTHING, held)
        return replace(verdict, variant="last row") if self.last_row and name == "logits" else verdict

    def _judge_large(
        self, name: str, x: Array, run: Mapping[str, Array], limit: Limit, r: Array | None, near: bool
    ) -> tuple[PointVerdict, Limit]:
        """The same, a few rows at a time."""
        point, mask = split_name(name)[1], self._mask(name, run)
        return judge_by_rows(
            name,
            x.shape,
            lambda: rows_of(point, x, run, r, spread=near, mask=mask),
            limit,
            tally=self.result.tally,
        )

    def _mask(self, name: str, run: Mapping[str, Array]) -> NDArray[np.bool_] | None:
        """Where a point is judged against a run; None for everywhere."""
        return judged_at(name, run, self.mask)
