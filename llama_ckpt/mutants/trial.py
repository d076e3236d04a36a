"""Both catalogues put to the test: is every bug caught, where it should be, and named; is nothing else?

A mutant is a bug laid over a program that rounds in float32, another order of sums for each seed, so that
a diagnosis has to see through the rounding. It is held, case by case and in the ladder's order, against
the oracle; the first checkpoint with a failing point has killed it, and the tensors of that checkpoint
are diagnosed. A bug that a prompt cannot show is not counted there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs import Bug, candidates, reached_from
from llama_ckpt.diagnose.diagnosis import diagnose_points
from llama_ckpt.diagnose.evidence import Predictions
from llama_ckpt.diagnose.patched_oracle import RIGHT, PatchedOracle
from llama_ckpt.diagnose.records import Diagnosis
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import ErrorKind, Limit, is_measured, limit_for, within
from llama_ckpt.judging.rounding import spreads_of
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.verdict import causal_mask, judge
from llama_ckpt.mutants.models import GivenPrompt
from llama_ckpt.mutants.right_programs.catalogue import Variant
from llama_ckpt.mutants.rival_metrics import RIVALS
from llama_ckpt.points import POINTS, Case, Checkpoint, block_point, split_name

__all__ = ["Bench", "BugRun", "FalseAlarm", "JudgedCase", "VariantRun", "run_bug", "run_variant"]

Array: TypeAlias = NDArray[Any]

MOST_CASES = 6
"""So many calls of the failing function are evidence for its diagnosis."""

FREE_RUN = "logits"
"""The function of the case that runs the whole model from its tokens."""


@dataclass(frozen=True)
class JudgedCase:
    """One point of a program on trial.

    Attributes:
        evidence: the tensor, the oracle's, its limit and its call.
        saw: our metrics that are beyond their limits; empty where it passes.
        rivals: names of other tools' metrics that would fail it; None where they do not apply.
    """

    evidence: Evidence
    saw: tuple[str, ...]
    rivals: frozenset[str] | None


@dataclass
class Bench:
    """One prompt on one model in one precision: every case, what is exact, and what a bug makes of it."""

    given: GivenPrompt
    ladder: Sequence[Checkpoint]
    predictions: Predictions = field(default_factory=Predictions)
    _exact: dict[int, dict[str, Array]] = field(default_factory=dict)
    _spreads: dict[int, dict[str, Spread]] = field(default_factory=dict)

    @cached_property
    def cases(self) -> dict[str, list[Case]]:
        """The calls of each checkpoint; the whole run of the model is one of checkpoint 8's."""
        found = {checkpoint.id: list(checkpoint.cases(self.given)) for checkpoint in self.ladder}
        given = self.given
        arguments = {"token_ids": given.token_ids, "weights": given.weights}
        arguments |= {"config": given.config, "positions": given.positions}
        outs = [block_point(number, "out") for number in range(given.config.n_layers)]
        taps = {name: name for name in (*outs, "output_norm")}
        found["8"].append(Case(FREE_RUN, arguments, ("logits",), taps))
        return found

    def exact(self, case: Case) -> dict[str, Array]:
        """The oracle's answers."""
        if id(case) not in self._exact:
            self._exact[id(case)] = RIGHT.answers(case)
        return self._exact[id(case)]

    def shows(self, bug: Bug, case: Case) -> bool:
        """Whether the bug changes anything in this call."""
        if bug.function not in reached_from(case.function):
            return False
        predicted = self.predictions.of(bug, case)
        exact = self.exact(case)
        return predicted is not None and any(
            not np.array_equal(predicted[name], exact[name], equal_nan=True) for name in exact
        )

    def judged(self, program: PatchedOracle, case: Case) -> Iterator[JudgedCase]:
        """Every point that the program shows of a call; without a measured limit there is no judging one."""
        exact, spreads = self.exact(case), self.spreads(case)
        with np.errstate(all="ignore"):
            trial = program.answers(case)
        for name in exact:
            if name in trial and self._has_limit(name, case):
                yield self._judged(name, trial[name], exact[name], case, spreads.get(name))

    def spreads(self, case: Case) -> dict[str, Spread]:
        """What rounding may leave in the answers."""
        if id(case) not in self._spreads:
            self._spreads[id(case)] = spreads_of(case, self.exact(case), self.given.dtype)
        return self._spreads[id(case)]

    def _judged(self, name: str, x: Array, o: Array, case: Case, spread: Spread | None) -> JudgedCase:
        limit = self._limit(name, case)
        mask = (
            causal_mask(self.given.positions)
            if _point(name) in POINTS and POINTS[_point(name)].causal
            else None
        )
        if spread is not None:
            limit = within(limit, spread, o, mask)
        x = x if limit.dtype == "integer" else x.astype(np.float32)
        verdict = judge(name, x, o, limit=limit, mask=mask, dtype=limit.dtype)
        saw = () if verdict.verdict == "pass" else _saw(x, o, limit, mask)
        rivals = None
        if limit.dtype != "integer":
            trial, exact = (x, o) if mask is None else (np.where(mask, x, 0.0), np.where(mask, o, 0.0))
            rivals = frozenset(
                rival.name for rival in RIVALS if not rival.passes(trial, exact.astype(np.float32))
            )
        return JudgedCase(Evidence(name, x, o, limit, case, mask), saw, rivals)

    def _has_limit(self, name: str, case: Case) -> bool:
        return case.function == "generate" or is_measured(name, self.given.dtype, self._error_kind(case))

    @staticmethod
    def _error_kind(case: Case) -> ErrorKind:
        return "total" if case.function == FREE_RUN else "own"

    def _limit(self, name: str, case: Case) -> Limit:
        if case.function == "generate":
            return Limit(name, "integer", "total", 0.0, 0.0, 0.0, 0.0, 0.0, "exact: tokens are equal or not")
        n_layers = self.given.config.n_layers
        return limit_for(name, self.given.dtype, self._error_kind(case), n_layers=n_layers)


def _point(name: str) -> str:
    return split_name(name)[1].split(".")[0]


def _saw(x: Array, o: Array, limit: Limit, mask: Any) -> tuple[str, ...]:
    """Which of our measures are beyond their limits."""
    if x.shape != o.shape:
        return ("shape",)
    if limit.exact:
        return ("exact",)
    if not np.isfinite(x).all():
        return ("finite",)
    found = limit.measure(x, o, mask)
    return tuple(metric for metric, (got, most) in limit.measured(found).items() if not got <= most)


@dataclass(frozen=True)
class BugRun:
    """One bug on one prompt.

    Attributes:
        bug: the catalogue's.
        label: the prompt's.
        killed_by: the id of the first checkpoint with a failing point; None: it survived.
        point: the first failing point.
        saw: our metrics that failed there. rivals: other tools' that fail any point of that checkpoint;
            None where it has integers only.
        diagnosis: of that checkpoint's tensors.
    """

    bug: Bug
    label: str
    killed_by: str | None = None
    point: str = ""
    saw: tuple[str, ...] = ()
    rivals: frozenset[str] | None = None
    diagnosis: Diagnosis | None = None

    @property
    def by_named_checkpoint(self) -> bool:
        """Killed by the checkpoint that the catalogue names, not by an earlier one."""
        return self.killed_by == self.bug.checkpoint

    @property
    def group(self) -> tuple[str, ...]:
        """The names that the diagnosis puts first: one, or several that it cannot tell apart."""
        if self.diagnosis is None or not self.diagnosis.named:
            return ()
        first = self.diagnosis.named[0].name
        return next((g for g in self.diagnosis.indistinguishable if first in g), (first,))

    @property
    def named_first(self) -> bool:
        """The diagnosis names this bug, and no other beside it."""
        return self.group == (self.bug.name,)

    @property
    def indistinguishable(self) -> bool:
        """The diagnosis says that it is this bug or another one."""
        return len(self.group) > 1 and self.bug.name in self.group


def run_bug(bug: Bug, bench: Bench, rounding: Variant) -> BugRun | None:
    """Climb the ladder with a bug over a program that rounds.

    None where this prompt cannot show it at its own checkpoint: a wrong group where nothing is grouped, a
    window of 4 tokens over 4 tokens.
    """
    if not any(bench.shows(bug, case) for case in bench.cases[bug.checkpoint]):
        return None
    program, passed = bug.over(rounding.program), list[str]()
    for checkpoint in bench.ladder:
        cases = [c for c in bench.cases[checkpoint.id] if bug.function in reached_from(c.function)]
        if not any(bench.shows(bug, case) for case in cases):
            passed.append(checkpoint.id)
            continue
        by_case = [list(bench.judged(program, case)) for case in cases]
        if any(one.saw for judged in by_case for one in judged):
            return _killed(bug, bench, checkpoint, by_case, tuple(passed))
        passed.append(checkpoint.id)
    return BugRun(bug, bench.given.label)


def _killed(
    bug: Bug, bench: Bench, checkpoint: Checkpoint, by_case: list[list[JudgedCase]], passed: tuple[str, ...]
) -> BugRun:
    points = [one for judged in by_case for one in judged]
    first = next(one for one in points if one.saw)
    rivals = [one.rivals for one in points if one.rivals is not None]
    return BugRun(
        bug,
        bench.given.label,
        checkpoint.id,
        first.evidence.name,
        first.saw,
        frozenset().union(*rivals) if rivals else None,
        diagnose_points(
            _evidence(first, by_case),
            among=candidates(first.evidence.case.function, passed),
            predictions=bench.predictions,
        ),
    )


def _evidence(first: JudgedCase, by_case: list[list[JudgedCase]]) -> list[Evidence]:
    """The first failing tensor, then others of its function, right and wrong; right ones tell something too.

    Of a whole run nothing after the first failing point: what is made there and what was inherited mix.
    """
    call = first.evidence.case
    own = next(judged for judged in by_case if any(one is first for one in judged))
    if call.function == FREE_RUN:
        others = own[: [one is first for one in own].index(True)]
    else:
        more = [j for j in by_case if j is not own and j[0].evidence.case.function == call.function]
        others = [one for judged in [own, *more][:MOST_CASES] for one in judged if one is not first]
    return [first.evidence, *(one.evidence for one in others)]


@dataclass(frozen=True)
class FalseAlarm:
    """A point of a right program that was condemned."""

    variant: str
    label: str
    checkpoint: str
    point: str
    saw: tuple[str, ...]


@dataclass(frozen=True)
class VariantRun:
    """One benign variant on one prompt: false alarms of ours, and the rivals that raised one."""

    variant: Variant
    label: str
    judged: int
    alarms: tuple[FalseAlarm, ...]
    rivals: frozenset[str]


def run_variant(variant: Variant, bench: Bench) -> VariantRun:
    """Climb the whole ladder with a right program."""
    alarms, rivals, n = [], set[str](), 0
    for checkpoint in bench.ladder:
        for case in bench.cases[checkpoint.id]:
            if case.function == "generate" and variant.dtype != "float32":
                continue  # two right programs may choose different tokens there
            for one in bench.judged(variant.program, case):
                n += 1
                rivals |= one.rivals or set()
                if one.saw:
                    alarms.append(
                        FalseAlarm(variant.name, bench.given.label, checkpoint.id, one.evidence.name, one.saw)
                    )
    return VariantRun(variant, bench.given.label, n, tuple(alarms), frozenset(rivals))
