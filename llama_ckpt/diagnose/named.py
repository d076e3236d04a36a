"""Which bug of the catalogue gives the tensor on trial: the oracle is run with each, and compared.

A bug explains a tensor when the oracle with that bug is as near to it as a right program is to the
oracle; what leaves more is named as a part of the truth, with the share that it explains. Two bugs are
indistinguishable when their own tensors differ by no more than what the better one leaves unexplained.
numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.diagnose.bugs import Bug, candidates
from llama_ckpt.diagnose.fits import fitted_bugs
from llama_ckpt.diagnose.matching import distance, leaves_at_most, passes
from llama_ckpt.diagnose.patched_oracle import DoesNotApply
from llama_ckpt.diagnose.records import NamedBug
from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.metrics import element_errors
from llama_ckpt.judging.verdict import judge
from llama_ckpt.points import Case

__all__ = ["Evidence", "Predictions", "name_bugs"]

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

EXPLAINS_MOST = 0.1
"""A bug is named, as a part of the truth, when it leaves less than this share of the error."""

SPARED = 0.1
"""Share of the elements that a bug need not explain."""

FINEST = 1e-12
"""Two tensors nearer than this are equal, even where nothing is left to compare that with."""


@dataclass(frozen=True)
class Evidence:
    """One tensor on trial, and the call of the oracle that it is an answer to.

    Attributes:
        name: the point's full name, one of those that the case returns or shows.
        x, o: the tensor on trial and the oracle's.
        limit: what holds there.
        case: arguments as the oracle takes them.
        mask: where it is judged, as in `compare.judge`.
    """

    name: str
    x: ArrayLike
    o: ArrayLike
    limit: Limit
    case: Case
    mask: Mask | None = None


@dataclass
class Predictions:
    """What each bug makes of a case, computed once; share one among diagnoses of the same cases."""

    _made: dict[tuple[str, int], dict[str, Array] | None] = field(default_factory=dict)
    _cases: dict[int, Case] = field(default_factory=dict)  # holds them, so that no id is used again

    def of(self, bug: Bug, case: Case) -> dict[str, Array] | None:
        """Every point of the case by name; None where the bug cannot be made of its arguments."""
        key = (bug.name, id(case))
        if key not in self._made:
            self._cases[id(case)] = case
            try:
                with np.errstate(all="ignore"):  # a bug may divide by zero or overflow
                    self._made[key] = bug.oracle.answers(case)
            except DoesNotApply:
                self._made[key] = None
        return self._made[key]


@dataclass(frozen=True)
class _Tried:
    """A bug, what it predicts for each piece of evidence, and what it leaves there."""

    bug: Bug
    predicted: Sequence[Array]
    errors: Sequence[float]
    explained: bool
    rank: float  # the largest error: in limits where it is explained, else as a share of the whole
    share: float  # of the error that it explains
    fits_most: bool  # all but SPARED of the elements fit within what rounding leaves

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


def name_bugs(
    evidence: Sequence[Evidence],
    *,
    among: Iterable[Bug] | None = None,
    predictions: Predictions | None = None,
) -> tuple[list[NamedBug], list[tuple[str, ...]]]:
    """The bugs that explain all of the evidence, best first, and which of them cannot be told apart.

    Args:
        evidence: tensors of one wrong function, of one call or of several; together they say more.
        among: the bugs that are tried; None: all that can show in the functions called. Where none of
            them explains it, those with a number that can be fitted are.
        predictions: those made before.
    """
    made = predictions or Predictions()
    if among is None:
        functions = dict.fromkeys(one.case.function for one in evidence)
        among = dict.fromkeys(bug for function in functions for bug in candidates(function))
    if all(_is_right(one) for one in evidence):
        return [], []  # nothing is wrong, and much would explain that
    unpatched = _worst([_errors(one, one.o) for one in evidence], evidence)
    tried = [found for bug in among if (found := _try(bug, evidence, made, unpatched))]
    if not any(one.explained for one in tried):
        first = evidence[0]
        fitted = (
            _try(bug, evidence, Predictions(), unpatched)
            for bug in fitted_bugs(first.name, first.x, first.case)
        )
        tried += [found for found in fitted if found and found.explained]
    tried.sort(key=lambda one: (not one.explained, one.rank))
    return [one.named(evidence) for one in tried], _alike(tried, evidence)


def _is_right(one: Evidence) -> bool:
    limit = one.limit
    return judge(one.name, one.x, one.o, limit=limit, mask=one.mask, dtype=limit.dtype).verdict == "pass"


def _errors(one: Evidence, p: ArrayLike) -> tuple[float, float]:
    """The error against a prediction, and without the elements that fit it least.

    A bug that rounds may round a few elements the other way than the oracle with that bug does.
    """
    return distance(one.x, p, one.mask), distance(one.x, p, one.mask, spared=SPARED)


def _worst(errors: Sequence[tuple[float, float]], evidence: Sequence[Evidence]) -> tuple[float, float]:
    """The largest of each kind of error, in units of the limit."""
    units = [leaves_at_most(one.limit) or FINEST for one in evidence]
    shares = [(whole / unit, most / unit) for (whole, most), unit in zip(errors, units, strict=False)]
    return max(whole for whole, _ in shares), max(most for _, most in shares)


def _try(
    bug: Bug, evidence: Sequence[Evidence], made: Predictions, unpatched: tuple[float, float]
) -> _Tried | None:
    """None where the bug cannot be made, changes nothing, or leaves too much."""
    predicted: list[Array] = []
    errors: list[tuple[float, float]] = []
    changes, enough = False, [EXPLAINS_MOST * error for error in unpatched]
    if unpatched[1] <= 1.0:
        enough[1] = 0.0  # most elements are right as it is, and need no bug
    for one in evidence:
        answers = made.of(bug, one.case)
        if answers is None:
            return None
        predicted.append(answers[one.name])
        errors.append(_errors(one, predicted[-1]))
        worst = _worst(errors, evidence)
        near = any(left < most for left, most in zip(worst, enough, strict=True))
        if not near and worst[0] > 1.0:
            return None
        changes = changes or distance(predicted[-1], one.o, one.mask) > FINEST
    parts = list(zip(evidence, predicted, strict=True))
    explained = worst[0] <= 1.0 and all(passes(one.x, p, one.limit, one.mask) for one, p in parts)
    if not changes or not (explained or near):
        return None
    left = min(left / (most or FINEST) for left, most in zip(worst, unpatched, strict=True))
    share = 1.0 if explained else 1.0 - worst[0] / unpatched[0] if np.isfinite(unpatched[0]) else 0.0
    rank = worst[0] if explained else left
    fits_most = not explained and worst[1] <= 1.0 < unpatched[1]
    return _Tried(bug, predicted, [whole for whole, _ in errors], explained, rank, share, fits_most)


def _alike(tried: Sequence[_Tried], evidence: Sequence[Evidence]) -> list[tuple[str, ...]]:
    """Groups of two and more whose predictions differ by less than what their first leaves."""
    groups, rest = [], list(tried)
    while rest:
        first, *others = rest
        group = [t for t in others if _cannot_be_told_apart(first, t, evidence)]
        rest = [t for t in others if t not in group]
        if group:
            groups.append((first.bug.name, *(t.bug.name for t in group)))
    return groups


def _cannot_be_told_apart(a: _Tried, b: _Tried, evidence: Sequence[Evidence]) -> bool:
    parts = zip(a.predicted, b.predicted, a.errors, evidence, strict=True)
    return all(distance(q, p, one.mask) <= max(left, FINEST) for p, q, left, one in parts)
