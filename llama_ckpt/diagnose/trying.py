"""One bug held against tensors on trial, a point at a time as the wrong program makes them.

What is ruled out at the first of several points is not computed to the last: most bugs are, and a block's
tensors are large. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.diagnose.bugs import Bug
from llama_ckpt.diagnose.evidence import Predictions
from llama_ckpt.diagnose.patched_oracle import DoesNotApply
from llama_ckpt.diagnose.records import NamedBug
from llama_ckpt.diagnose.showing import show_answers
from llama_ckpt.judging.evidence import FINEST, Evidence
from llama_ckpt.judging.matching import distance, leaves_at_most, passes, would_explain
from llama_ckpt.judging.metrics import element_errors
from llama_ckpt.points import Case

__all__ = [
    "FINEST",
    "SLACK",
    "Evidence",
    "Predictions",
    "Trial",
    "Tried",
    "Unpatched",
    "may_explain",
    "try_bug",
    "unpatched",
]

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

EXPLAINS_MOST = 0.1
"""A bug is named, as a part of the truth, when it leaves less than this share of the error."""

SPARED = 0.1
"""Share of the elements that a bug need not explain."""

MOVES = 0.5
"""An explanation is as far from the oracle as this share of the error, or it explains nothing."""

SLACK = 4.0
"""A few tokens may be so much further off than what all of them are allowed together."""


@dataclass(frozen=True)
class Tried:
    """A bug that explains the evidence or most of it, what it predicts there, and what it leaves.

    Attributes:
        bug: the catalogue's, or a fitted one.
        predicted, errors: for each piece of evidence.
        explained: all of it would pass.
        rank: the largest error: in limits where it is explained, else as a share of the whole.
        share: of the error that it explains.
        fits_most: all but SPARED of the elements fit within what rounding leaves.
    """

    bug: Bug
    predicted: Sequence[Array]
    errors: Sequence[float]
    explained: bool
    rank: float
    share: float
    fits_most: bool

    def named(self, evidence: Sequence[Evidence]) -> NamedBug:
        """With the error that is the largest for its limit."""
        allowed = [leaves_at_most(one.limit) for one in evidence]
        worst = max(range(len(allowed)), key=lambda i: self.errors[i] / (allowed[i] or FINEST))
        return NamedBug(
            self.bug.name,
            self.bug.sentence,
            self.errors[worst],
            self.explained,
            self.bug.checkpoint,
            self.share,
            allowed[worst],
            self._beyond(evidence),
            self.bug.rounds,
        )

    def _beyond(self, evidence: Sequence[Evidence]) -> float:
        """The share of elements beyond their limits where nearly all fit; NaN where they do not."""
        if not self.fits_most:
            return float("nan")
        off = total = 0
        for one, p in zip(evidence, self.predicted, strict=True):
            errors = element_errors(np.nan_to_num(one.x), np.nan_to_num(p), one.mask)
            off += int(np.sum(errors > max(one.limit.element_err, leaves_at_most(one.limit))))
            total += errors.size
        return off / total


@dataclass(frozen=True)
class Unpatched:
    """How far the evidence is from the oracle, in limits, and what of that a bug may leave.

    Attributes:
        whole: of all elements; most: without those that are furthest off.
        part: a bug is a part of the truth when it leaves less than this share.
    """

    whole: float
    most: float
    part: float

    @property
    def enough(self) -> tuple[float, float]:
        """What may be left of either for a bug to be a part of the truth."""
        # Where most elements are right as it is, they need no bug.
        return self.part * self.whole, self.part * self.most if self.most > 1.0 else 0.0


def unpatched(evidence: Sequence[Evidence], part: float = EXPLAINS_MOST) -> Unpatched:
    """The evidence against the oracle as it is; `part` is as in `Unpatched`."""
    errors = [_in_limits(one, one.o)[1] for one in evidence]
    return Unpatched(max(whole for whole, _ in errors), max(most for _, most in errors), part)


def _in_limits(one: Evidence, p: ArrayLike) -> tuple[float, tuple[float, float]]:
    """The error against a prediction; the same in limits, and without the elements that fit it least.

    A bug that rounds may round a few elements the other way than the oracle with that bug does.
    """
    unit = leaves_at_most(one.limit) or FINEST
    whole = distance(one.x, p, one.mask)
    most = whole if whole <= unit else distance(one.x, p, one.mask, spared=SPARED)
    return whole, (whole / unit, most / unit)


@dataclass
class Trial:
    """Takes the wrong program's tensors as they come.

    Attributes:
        evidence: what they are held against; unpatched: how far that is from the oracle.
        slack: limits are so many times wider.
        predicted, errors: by the evidence's number.
        whole, most: what is left, in limits: of all elements, and without those that are furthest off.
    """

    evidence: Sequence[Evidence]
    unpatched: Unpatched
    slack: float = 1.0
    predicted: dict[int, Array] = field(default_factory=dict)
    errors: dict[int, float] = field(default_factory=dict)
    whole: float = 0.0
    most: float = 0.0

    @property
    def near(self) -> bool:
        """Whether it leaves little enough so far to be a part of the truth."""
        whole, most = self.unpatched.enough
        return self.whole < self.slack * whole or self.most < self.slack * most

    def see(self, call: Case, name: str, p: Array) -> bool:
        """Take one tensor; False where the bug is ruled out."""
        for i, one in enumerate(self.evidence):
            if one.case is call and one.name == name:
                self.predicted[i] = p
                self.errors[i], (whole, most) = _in_limits(one, p)
                self.whole, self.most = max(self.whole, whole), max(self.most, most)
        return self.near or self.whole <= self.slack

    def runs(
        self,
        program: Callable[[Case], Callable[..., Any]],
        known: Callable[[Case], Mapping[str, Array] | None] | None = None,
    ) -> bool:
        """Take every tensor that is wanted; False where the bug is ruled out, or cannot be made.

        Args:
            program: gives the wrong program's function for a call.
            known: gives what it answered before.
        """
        for call in {id(one.case): one.case for one in self.evidence}.values():
            wanted = {one.name for one in self.evidence if one.case is call}
            see = partial(self.see, call)
            if known is not None:
                answers = known(call)
                if answers is None or not all(see(name, answers[name]) for name in wanted):
                    return False
                continue
            try:
                with np.errstate(all="ignore"):  # a bug may divide by zero or overflow
                    if not show_answers(program(call), call, wanted, see):
                        return False
            except DoesNotApply:
                return False
        return True

    @property
    def parts(self) -> list[tuple[Evidence, Array]]:
        """Each piece of evidence with what the bug makes of it."""
        return [(one, self.predicted[i]) for i, one in enumerate(self.evidence)]

    @property
    def changes(self) -> bool:
        """Whether the bug moves any of the tensors far enough to be what is wrong with them."""
        return any(_moves(one, p) for one, p in self.parts)

    @property
    def explained(self) -> bool:
        """Whether all of the evidence would pass, and is left no further off than it is.

        Where limits are wide, of roundings that nobody recorded, many a bug moves what fails to within them.
        """
        return self.whole <= min(self.slack, self.unpatched.whole) and all(
            would_explain(p, one.x, one.o, one.limit, one.mask) for one, p in self.parts
        )


def _moves(one: Evidence, p: Array) -> bool:
    moved = distance(p, one.o, one.mask)
    if not np.isfinite(moved):
        return True
    return moved > FINEST and (
        moved >= MOVES * distance(one.x, one.o, one.mask) or not passes(p, one.o, one.limit, one.mask)
    )


def try_bug(
    bug: Bug, evidence: Sequence[Evidence], before: Unpatched, made: Predictions | None = None
) -> Tried | None:
    """None where the bug cannot be made, changes nothing, or leaves too much.

    Args:
        evidence: of one call or of several.
        before: what `unpatched` gives of it.
        made: predictions that are kept; None computes no further than it must.
    """
    trial = Trial(evidence, before)
    program = bug.over(evidence[0].base)
    known = None if made is None else partial(made.of, bug)
    if not trial.runs(lambda case: getattr(program, case.function), known) or not trial.changes:
        return None
    explained = trial.explained
    if not (explained or trial.near):
        return None
    pairs = zip((trial.whole, trial.most), (before.whole, before.most), strict=True)
    left = min(left / (most or FINEST) for left, most in pairs)
    share = 1.0 if explained else 1.0 - trial.whole / before.whole if np.isfinite(before.whole) else 0.0
    return Tried(
        bug,
        [p for _, p in trial.parts],
        [trial.errors[i] for i in range(len(evidence))],
        explained,
        trial.whole if explained else left,
        share,
        not explained and trial.most <= 1.0 < before.most,
    )


def may_explain(bug: Bug, few: Sequence[Evidence], before: Unpatched) -> bool:
    """Whether a bug leaves little enough of a few tokens to be worth a look at all of them."""
    program = bug.over(few[0].base)
    return Trial(few, before, SLACK).runs(lambda case: getattr(program, case.function))
