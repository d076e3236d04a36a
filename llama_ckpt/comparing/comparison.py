"""What a comparison of somebody's dump says: plain records, and their JSON.

`docs/report_schema.md` documents the JSON; `SCHEMA` is its version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llama_ckpt.comparing.arithmetic_costs import ArithmeticCosts
from llama_ckpt.comparing.nearest import NOTHING, DataFlow, Nearest
from llama_ckpt.comparing.rank_verdict import RankVerdict
from llama_ckpt.diagnose.records import Diagnosis
from llama_ckpt.json_values import finite
from llama_ckpt.judging.tally import Tally
from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.listing import listed
from llama_ckpt.points import split_name
from llama_ckpt.results import Result

__all__ = [
    "SCHEMA",
    "ComparedPoint",
    "Comparison",
    "LayerErrors",
    "LintFinding",
    "NextStep",
    "SequenceVerdict",
    "TokenChoice",
]

SCHEMA = 2
"""The version of the comparison's JSON."""

WHERE = {"": "", "here": "made here", "inherited": "inherited", "unknown": "own or inherited: not known"}


@dataclass(frozen=True)
class LintFinding:
    """Something about the dump itself that is wrong; each fails the comparison.

    Attributes:
        kind: "missing_bos", "other_tokens", "other_positions", "other_weights", "missing_point",
            "not_finite", "axis_order", "padded", "shape", "norm_before_weight", "layers_shifted",
            "layers_identical", "stale_buffer", "unwritten", "mixed_layout", "sees_others", "cache",
            "nan_of_padding".
        point: the first point that it concerns; "" for the whole dump.
        message: one sentence: what is there, and what was wanted.
        hint: what to do about it.
    """

    kind: str
    point: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class ComparedPoint:
    """One tensor of theirs, judged twice.

    Attributes:
        name: the point's full name.
        own: against the oracle on their own recorded inputs: the error made here. None where it cannot
            be told: no model, or no input known.
        total: against the oracle's own run from the tokens (llama.cpp's tensor where there is no model).
        read: the points that its step reads; `computed`: those among them that they did not record,
            so that the oracle computed them from what they did.
        made: "here" where the error is made here, "between" where it is made here or in steps before it that
            were not recorded, "inherited" where it came with the inputs, "unknown" where that cannot be
            told, "" where there is none.
        since: the nearest recorded points before it, and what lies between unseen.
    """

    name: str
    own: PointVerdict | None
    total: PointVerdict | None
    read: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    made: Literal["", "here", "between", "inherited", "unknown"] = ""
    since: Nearest = NOTHING

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """ "fail" where an error is made here, inherited, or nobody can tell which."""
        return "fail" if self.made else "pass"

    @property
    def leading(self) -> PointVerdict:
        """The verdict that says most: on the own error where that fails, else on the whole."""
        candidates = [one for one in (self.own, self.total) if one is not None]
        return next((one for one in candidates if one.verdict == "fail"), candidates[-1])

    @property
    def where(self) -> str:
        """Where its error is made, a clause; "" where there is none."""
        if self.made == "between":
            return f"made between {listed((*self.since.sources, self.name))}"
        return WHERE[self.made]

    @property
    def blame(self) -> str:
        """Who is off: as in `PointVerdict`, and "unknown" where nobody can tell without the oracle."""
        if self.made == "unknown":
            return "unknown"
        return "yours" if self.made else self.leading.blame

    def to_json(self) -> dict[str, Any]:
        """One flat record with `own` and `total` below it."""
        block, point = split_name(self.name)
        return {
            "name": self.name,
            "block": block,
            "point": point,
            "verdict": self.verdict,
            "made": self.made,
            "blame": self.blame,
            "reads": list(self.read),
            "computed_inputs": list(self.computed),
            "computed_from": list(self.since.recorded),
            "own": None if self.own is None else self.own.to_json(),
            "total": None if self.total is None else self.total.to_json(),
        }


@dataclass(frozen=True)
class LayerErrors:
    """How much of a block's error is its own; relative errors at the block's end, NaN where unknown.

    Attributes:
        block: its number.
        own: of their output against the oracle's block on their input; `own_limit` what is allowed.
        inherited: of the oracle's block on their input against its own run from the tokens.
        total: of their output against the oracle's own run; `limit` what is allowed.
        reference: llama.cpp's, against the oracle's own run.
        amplification: inherited over the error of the block's input: how much the block grows an error.
        row_errs: total, for each token.
    """

    block: int
    own: float = math.nan
    inherited: float = math.nan
    total: float = math.nan
    reference: float = math.nan
    amplification: float = math.nan
    own_limit: float = math.nan
    limit: float = math.nan
    row_errs: tuple[float, ...] = ()


@dataclass(frozen=True)
class TokenChoice:
    """The greedy token after one row, and who is right about it.

    Attributes:
        row: which token of the prompt it follows.
        got: theirs; `wanted` llama.cpp's (the oracle's without it), `exact` the oracle's, None without.
        margin: the oracle's logit of the best less that of the other; NaN where all agree, or without it.
        noise: what rounding may put between two logits, as measured in this row.
        blame: "", "yours", "reference", "tie".
    """

    row: int
    got: int
    wanted: int
    exact: int | None
    margin: float
    noise: float
    blame: str


@dataclass(frozen=True)
class NextStep:
    """What to do next: why, and a command to type ("" where it is no command)."""

    why: str
    command: str = ""


@dataclass(frozen=True)
class SequenceVerdict:
    """What was found of one of several sequences, or of one with padding around it.

    Attributes:
        number: as the dump numbers it.
        rows: which rows of the file are its own.
        verdict: "pass" or "fail".
        compared, of: as of a `Comparison`.
        first_wrong: the first wrong point; None without one.
        shown: whether the comparison's points and everything else are those of this one.
        calls: that its rows came in; rolled_back: before which its last rows were removed, None where they
            stand to the end.
    """

    number: int
    rows: tuple[int, ...]
    verdict: Literal["pass", "fail", "arithmetic"]
    compared: int
    of: int
    first_wrong: str | None
    shown: bool
    calls: tuple[int, ...] = (0,)
    rolled_back: int | None = None


@dataclass(repr=False)
class Comparison(Result):
    """The whole comparison.

    Attributes:
        theirs: path and facts of their dump.
        reference: llama.cpp's dump and its provenance, None without one.
        model: the model's name and checksums, None without one.
        dtype: whose limits hold.
        token_ids, positions: of the prompt.
        compared, of: how many points were judged, of how many there should be.
        skipped: points of the model that were not recorded, so not judged.
        findings: what lint found; each fails.
        points: every point judged, in the order of the data's flow.
        layers: own and inherited error for each block.
        tokens: the greedy token after each row.
        diagnoses: what the first wrong points look like, the first first.
        cannot_tell: sentences on what is left unjudged, and why.
        notes: what was read as meant, and what was not declared.
        next: what to do.
        tally: histograms and maps for the page of the report.
        sequences: of a dump with several, or with padding, each of them; all else is that of one alone.
        ranks: of a run on several, each of them; all else is of what they make together.
        arithmetic: what the program rounds on purpose, declared or found out; None where nothing is.
        seconds: what it took.
        wrong_rows: of the first wrong point, the rows that are off.
        where: in which call and sequence that is, a clause; run_fault: what of a cache or a batch gives it.
        experts: whether the model is a mixture of experts.
        token_texts: of each token as the model's vocabulary writes it; empty where that is not known.
    """

    theirs: Mapping[str, Any]
    reference: Mapping[str, Any] | None
    model: Mapping[str, Any] | None
    dtype: str
    token_ids: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    compared: int = 0
    of: int = 0
    skipped: tuple[str, ...] = ()
    findings: list[LintFinding] = field(default_factory=list)
    points: list[ComparedPoint] = field(default_factory=list)
    layers: list[LayerErrors] = field(default_factory=list)
    tokens: list[TokenChoice] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    cannot_tell: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next: list[NextStep] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    sequences: list[SequenceVerdict] = field(default_factory=list)
    ranks: list[RankVerdict] = field(default_factory=list)
    arithmetic: ArithmeticCosts | None = None
    seconds: float = 0.0
    wrong_rows: tuple[int, ...] = ()
    where: str = ""
    run_fault: str = ""
    experts: bool = False
    token_texts: tuple[str, ...] = ()
    schema: int = SCHEMA

    def note_arithmetic(self, name: str, costs: float, left: float, *, passes: bool) -> None:
        """What declared roundings cost at a point, and what is left beside them."""
        if self.arithmetic is not None:
            self.arithmetic.note(name, costs, left, passes)

    @property
    def first_wrong(self) -> ComparedPoint | None:
        """The first point where an error is made; where none is told apart, the first that is off."""
        wrong = [point for point in self.points if point.made]
        return next((point for point in wrong if point.made != "inherited"), wrong[0] if wrong else None)

    @property
    def record_next(self) -> str | None:
        """The point whose recording leaves least to search; None where none was left out."""
        first = self.first_wrong
        if first is None or first.made != "between":
            return None
        # What a right point was computed from is nearly always right as well.
        right = {name for point in self.points if not point.made for name in point.since.unseen}
        suspects = [name for name in first.since.unseen if name not in right]
        flow = DataFlow(len(self.layers), self.experts)
        return flow.record_next(suspects) or flow.record_next(first.since.unseen)

    @property
    def verdict(self) -> Literal["pass", "fail", "arithmetic"]:
        """ "pass" where something was compared, nothing is missing, and nothing is wrong.

        "arithmetic" where that holds once roundings are made that the program did not declare.
        """
        wrong_token = any(token.blame == "yours" for token in self.tokens)
        if self.findings or self.first_wrong or wrong_token or not self.compared:
            return "fail"
        if self.arithmetic is None or self.arithmetic.declared:
            return "pass"
        return "arithmetic" if self.arithmetic.proved else "fail"

    @property
    def exit_code(self) -> int:
        """0 for a pass, 3 for roundings that were not declared and explain it all, else 1."""
        return {"pass": 0, "arithmetic": 3}.get(self.verdict, 1)

    @property
    def reason(self) -> str:
        """The verdict's reason in one sentence."""
        first = self.first_wrong
        if first is not None:
            looks = self.run_fault or (self.diagnoses[0].sentence() if self.diagnoses else "")
            why = looks or first.leading.reason.partition(";")[0]
            why = why if self.arithmetic is None else self.arithmetic.beside(why)
            return f"{first.name} is the first wrong point, {first.where}{self.where}: {why}"
        if self.findings:
            more = f" and {len(self.findings) - 1} more" if len(self.findings) > 1 else ""
            return self.findings[0].message + more
        if not self.compared:
            return "nothing was compared"
        wrong = [token for token in self.tokens if token.blame == "yours"]
        if wrong:
            return f"the greedy token after row {wrong[0].row} is {wrong[0].got}, wanted {wrong[0].wanted}"
        found = self.arithmetic
        if found is None:
            return "every point within its limits"
        if found.declared:
            return f"every point within its limits; {found.sentence()}"
        if not found.proved:
            return f"{found.costs_at} is {found.found_out()}"
        return f"differs by arithmetic, no bug seen: {found.found_out()}"

    def to_json(self) -> dict[str, Any]:
        """The report as `--json` writes it; a number that JSON cannot hold becomes None."""
        first = self.first_wrong
        record = {
            "schema": self.schema,
            "kind": "comparison",
            "verdict": self.verdict,
            "reason": self.reason,
            "first_wrong": None if first is None else first.name,
            "made": None if first is None else first.made,
            "where": self.where.strip(),
            "run_fault": self.run_fault,
            "between": self._between(first),
            "record_next": self.record_next,
            "blame": None if first is None else first.blame,
            "yours": dict(self.theirs),
            "reference": None if self.reference is None else dict(self.reference),
            "model": None if self.model is None else dict(self.model),
            "dtype": self.dtype,
            "arithmetic": None if self.arithmetic is None else asdict(self.arithmetic),
            "token_ids": list(self.token_ids),
            "positions": list(self.positions),
            "token_texts": list(self.token_texts),
            "compared": self.compared,
            "of": self.of,
            "skipped": list(self.skipped),
            "findings": [asdict(one) for one in self.findings],
            "diagnoses": [one.to_json() for one in self.diagnoses],
            "layers": [asdict(one) for one in self.layers],
            "tokens": [asdict(one) for one in self.tokens],
            "points": [one.to_json() for one in self.points],
            "nearest": self._nearest(),
            "cannot_tell": self.cannot_tell,
            "notes": self.notes,
            "next": [asdict(one) for one in self.next],
            "sequences": [asdict(one) for one in self.sequences],
            "ranks": [asdict(one) for one in self.ranks],
            "maps": self.tally.to_json(),
            "seconds": round(self.seconds, 3),
        }
        plain: dict[str, Any] = finite(record)
        return plain

    def _nearest(self) -> dict[str, Any] | None:
        """Which right point's own error uses most of what it is allowed, in which metric, and how much."""
        own = [point.own for point in self.points if point.own is not None and not point.made]
        shares = [one for one in own if one.nearest]
        if not shares:
            return None
        most = max(shares, key=lambda one: one.share)
        return {"point": most.name, "metric": most.nearest, "share": most.share}

    @staticmethod
    def _between(first: ComparedPoint | None) -> dict[str, Any] | None:
        """From which recorded points to which; no points stand for the tokens."""
        if first is None or first.made != "between":
            return None
        since = first.since
        return {
            "from": list(since.recorded),
            "from_tokens": since.from_tokens,
            "to": first.name,
            "unseen": list(since.unseen[:-1]),
        }
