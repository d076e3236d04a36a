"""The diagnosis of one point: what its residual looks like, and which bug gives it.

    found = diagnose_point("blk.0.q_rope", x, o, limit=limit, case=case)
    found.sentence()      # "RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1): remaining error 3e-08"

`diagnose_points` does the same for several tensors of one wrong function: what one of them leaves open
another may tell. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.diagnose.bugs import Bug
from llama_ckpt.diagnose.evidence import Predictions
from llama_ckpt.diagnose.named import name_bugs
from llama_ckpt.diagnose.records import Diagnosis, NamedBug, SmallestLimit
from llama_ckpt.diagnose.structure import find_structure
from llama_ckpt.diagnose.trying import EXPLAINS_MOST
from llama_ckpt.identify.identify import Identification, identify
from llama_ckpt.identify.record import NOTHING_AROUND, Around, Asked
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.matching import distance
from llama_ckpt.judging.metrics import averaging
from llama_ckpt.points import Case

__all__ = ["diagnose_point", "diagnose_points", "smallest_limit"]


LARGE = 500_000
"""Elements of a tensor that is not searched for simple changes once a bug explains it."""


def diagnose_point(
    name: str,
    x: ArrayLike,
    o: ArrayLike,
    *,
    limit: Limit,
    case: Case | None = None,
    mask: NDArray[np.bool_] | None = None,
    n_heads: int | None = None,
    neighbours: Mapping[str, ArrayLike] | None = None,
    among: Iterable[Bug] | None = None,
    predictions: Predictions | None = None,
) -> Diagnosis:
    """Say what is wrong with the tensor `x` at point `name`.

    Args:
        x, o: the tensor on trial and the oracle's; x may be of another shape, or not finite.
        limit: what `limits.limit_for` gives for this point, precision and error_kind.
        case: the call that o answers, with arguments as the oracle takes them (float64 arrays); its
            returns or taps name this point. None: no bugs are tried.
        mask: where the point is judged, as in `compare.judge`.
        n_heads: into how many heads a flat last axis is divided.
        neighbours: the oracle's tensors of other layers, by name, that x might be by mistake.
        among: the bugs that are tried; None: all that can show in this case.
        predictions: share one among diagnoses of the same cases, and no bug is computed twice.
    """
    named: list[NamedBug] = []
    alike: list[tuple[str, ...]] = []
    identified = Identification()
    if case is not None:
        evidence = [Evidence(name, x, o, limit, case, mask)]
        named, alike = name_bugs(evidence, among=among, predictions=predictions)
        if not _is_enough(named, o):
            identified = identify(Asked(evidence))
    structure = partial(find_structure, limit=limit, mask=mask, n_heads=n_heads, neighbours=neighbours)
    return Diagnosis(
        name,
        err=distance(x, o, mask),
        structure=[] if _is_enough(named, o) else structure(x, o),
        named=named,
        indistinguishable=alike,
        smallest_limit=smallest_limit(x, o, limit, mask),
        identified=list(identified.found),
        facts=identified.facts,
        like=identified.like,
    )


def _is_enough(named: Sequence[NamedBug], o: ArrayLike) -> bool:
    """Whether a bug explains a tensor so large that looking for simpler changes would take long."""
    return np.size(o) > LARGE and any(bug.explained for bug in named)


def diagnose_points(
    evidence: Sequence[Evidence],
    *,
    among: Iterable[Bug] | None = None,
    predictions: Predictions | None = None,
    part: float = EXPLAINS_MOST,
    around: Around = NOTHING_AROUND,
) -> Diagnosis:
    """The diagnosis of the first tensor, its bugs named by all of them together.

    Args:
        evidence: the tensors of one function, right and wrong ones, the first wrong one first; those
            that are right tell which bugs it cannot be.
        among, predictions: as in `diagnose_point`; part: as in `name_bugs`.
        around: what else is known of the model and the dump, for the identifiers.
    """
    first = evidence[0]
    named, alike = name_bugs(evidence, among=among, predictions=predictions, part=part)
    structure = partial(find_structure, limit=first.limit, mask=first.mask)
    enough = _is_enough(named, first.o)
    identified = Identification() if enough else identify(Asked(evidence, around))
    return Diagnosis(
        first.name,
        err=distance(first.x, first.o, first.mask),
        structure=[] if enough else structure(first.x, first.o),
        named=named,
        indistinguishable=alike,
        smallest_limit=smallest_limit(first.x, first.o, first.limit, first.mask),
        identified=list(identified.found),
        facts=identified.facts,
        like=identified.like,
    )


def smallest_limit(
    x: ArrayLike, o: ArrayLike, limit: Limit, mask: NDArray[np.bool_] | None = None
) -> SmallestLimit | None:
    """The smallest limits that x would pass; None where it cannot be measured, or must be exact."""
    trial, oracle = np.asarray(x), np.asarray(o)
    if limit.exact or trial.shape != oracle.shape or not np.isfinite(trial).all():
        return None
    found = limit.measure(trial, oracle, mask)
    least = {
        "err": found.err,
        "row_err": found.row_err,
        "element_err": found.element_err,
        "gain": abs(found.gain) / averaging(found.n_gain),
        "bias": abs(found.bias) / averaging(found.n),
        "turn": 0.0 if found.turn is None else found.turn.got,
    }
    factors = {metric: _share(got, most) for metric, (got, most) in limit.measured(found).items()}
    metric = max(factors, key=factors.__getitem__)
    return SmallestLimit(**least, factor=factors[metric], metric=metric)


def _share(got: float, most: float) -> float:
    """How much of what is allowed is used; infinite where something is and nothing is allowed."""
    return got / most if most else math.inf if got else 0.0
