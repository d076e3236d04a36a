"""Which bug of the catalogue gives the tensor on trial: the oracle is run with each, and compared.

A bug explains a tensor when the oracle with that bug is as near to it as a right program is to the
oracle. Two bugs are indistinguishable when their own tensors differ by no more than what the better one
leaves unexplained. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.compare import judge
from llama_ckpt.diagnose.bugs import Bug, candidates
from llama_ckpt.diagnose.patched_oracle import DoesNotApply
from llama_ckpt.diagnose.records import NamedBug
from llama_ckpt.limits import Limit
from llama_ckpt.metrics import measure
from llama_ckpt.points import Case

__all__ = ["Evidence", "Predictions", "name_bugs", "remaining"]

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

EXPLAINS_MOST = 0.1
"""A bug is named when it leaves less than this share of the error."""

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


def remaining(x: ArrayLike, p: ArrayLike, limit: Limit, mask: Mask | None = None) -> tuple[float, bool]:
    """The relative error of x against a prediction p, and whether it would pass with p as the oracle.

    Where both are NaN, or the same infinity, they are equal; infinite where only one is.
    """
    trial, predicted = np.asarray(x), np.asarray(p)
    if trial.shape != predicted.shape:
        return np.inf, False
    if limit.exact:
        share = float(np.mean(trial != predicted)) if trial.size else 0.0
        return share, share == 0.0
    trial, predicted = trial.astype(np.float64), predicted.astype(np.float64)
    odd = ~(np.isfinite(trial) & np.isfinite(predicted))
    if odd.any():
        if not np.array_equal(trial[odd], predicted[odd], equal_nan=True):
            return np.inf, False
        trial, predicted = np.where(odd, 0.0, trial), np.where(odd, 0.0, predicted)
    err = measure(trial, predicted, mask).err
    passes = judge("", trial, predicted, limit=limit, mask=mask, dtype=limit.dtype).verdict == "pass"
    return err, passes


@dataclass(frozen=True)
class _Tried:
    """A bug, what it predicts for each piece of evidence, and what it leaves there."""

    bug: Bug
    predicted: Sequence[Array]
    errors: Sequence[float]
    score: float  # the largest error in units of its limit
    explained: bool


def name_bugs(
    evidence: Sequence[Evidence],
    *,
    among: Iterable[Bug] | None = None,
    predictions: Predictions | None = None,
) -> tuple[list[NamedBug], list[tuple[str, ...]]]:
    """The bugs that explain all of the evidence, best first, and which of them cannot be told apart.

    Args:
        evidence: tensors of one wrong function, of one call or of several; together they say more.
        among: the bugs that are tried; None: all that can show in the functions called.
        predictions: those made before.
    """
    made = predictions or Predictions()
    if among is None:
        functions = dict.fromkeys(one.case.function for one in evidence)
        among = dict.fromkeys(bug for function in functions for bug in candidates(function))
    unpatched = [remaining(one.x, one.o, one.limit, one.mask)[0] for one in evidence]
    most = EXPLAINS_MOST * max(map(_in_limits, unpatched, evidence), default=0.0)
    tried = [t for bug in among if (t := _try(bug, evidence, made)) and (t.explained or t.score < most)]
    tried.sort(key=lambda t: t.score)
    named = [
        NamedBug(t.bug.name, t.bug.sentence, max(t.errors), t.explained, t.bug.checkpoint) for t in tried
    ]
    return named, _alike(tried, evidence)


def _in_limits(error: float, one: Evidence) -> float:
    return error / (one.limit.err or FINEST)


def _try(bug: Bug, evidence: Sequence[Evidence], made: Predictions) -> _Tried | None:
    """None where the bug cannot be made, or changes nothing."""
    predicted: list[Array] = []
    for one in evidence:
        answers = made.of(bug, one.case)
        if answers is None:
            return None
        predicted.append(answers[one.name])
    if all(_apart(p, one.o, one.mask) <= FINEST for p, one in zip(predicted, evidence, strict=True)):
        return None
    left = [remaining(one.x, p, one.limit, one.mask) for p, one in zip(predicted, evidence, strict=True)]
    errors = [error for error, _ in left]
    return _Tried(bug, predicted, errors, max(map(_in_limits, errors, evidence)), all(ok for _, ok in left))


def _apart(a: ArrayLike, b: ArrayLike, mask: Mask | None) -> float:
    """The relative distance of two tensors; NaN is equal to NaN."""
    one, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if one.shape != other.shape:
        return np.inf
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    judged = np.broadcast_to(np.bool_(True) if mask is None else mask, one.shape) & ~same
    norm = float(np.linalg.norm(other[np.isfinite(other)])) or 1.0
    with np.errstate(invalid="ignore"):
        distance = float(np.linalg.norm((one - other)[judged])) / norm
    return distance if np.isfinite(distance) else np.inf


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
    return all(_apart(q, p, one.mask) <= max(left, FINEST) for p, q, left, one in parts)
