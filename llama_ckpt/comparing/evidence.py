"""What is held against the catalogue of bugs: the tensors that one call of the oracle answers for.

A bug changes a function, so all that comes out of one call of it tells of the bug: the right tensors what it
cannot be. Here these are on the call's own inputs, whatever of its inner tensors was recorded, and held to
what rounding leaves of the whole call. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.block_run import MATRICES, BlockRun
from llama_ckpt.comparing.comparison import ComparedPoint
from llama_ckpt.comparing.large import rows_of
from llama_ckpt.comparing.own_run import OwnRun
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import ErrorKind, Limit, within
from llama_ckpt.judging.near_ties import AFTER_CHOICE
from llama_ckpt.judging.within_rows import within_rows
from llama_ckpt.points import ALL_POINTS, Case, split_name

__all__ = ["VAST", "Call", "Limits", "answered", "evidence", "is_vast"]

Array: TypeAlias = NDArray[Any]
Limits: TypeAlias = Callable[[str, ErrorKind], Limit]
"""What holds at a full name."""


VAST = 1 << 20
"""Elements of a tensor that is too large to be looked at without need."""


@dataclass(frozen=True)
class Call:
    """A call of the oracle, and what it answers.

    Attributes:
        case: the call.
        run: its answers, and what rounding leaves of them.
    """

    case: Case
    run: OwnRun


def answered(case: Case, points: Iterable[str]) -> list[str]:
    """Those among these neutral points that a call answers for."""
    inside = {split_name(name)[1] for name in (*case.taps.values(), *case.returns)}
    return [point for point in points if point in inside]


def is_vast(judged: ComparedPoint) -> bool:
    """Whether a right tensor is so large that others are to tell what a bug cannot be."""
    return not judged.made and judged.leading.n_judged > VAST


def evidence(
    call: Call,
    points: Iterable[str],
    judged: Mapping[str, ComparedPoint],
    theirs: Mapping[str, Array],
    mask: NDArray[np.bool_],
    limits: Limits,
) -> list[Evidence]:
    """Their tensors at these points, with what the call answers there; in the order of `points`."""
    found = []
    for point in points:
        o = call.run.get(point)
        if o is None:
            continue
        name, seen = judged[point].name, mask if ALL_POINTS[point].causal else None
        if point in AFTER_CHOICE and isinstance(call.run, BlockRun):
            seen = _chosen_alike(call.run, seen, o.ndim)
        limit = _allowed(call.run, point, theirs[point], o, limits(name, "own"), seen)
        found.append(Evidence(name, theirs[point], o, limit, call.case, seen, call.run.base))
    return found


def _allowed(
    run: OwnRun, point: str, x: Array, o: Array, limit: Limit, seen: NDArray[np.bool_] | None
) -> Limit:
    """What rounding allows a tensor of a call."""
    if x.shape != o.shape:
        return limit
    if point in MATRICES and o.size > VAST and isinstance(run, BlockRun) and run.in_parts:
        return within_rows(limit, rows_of(point, x, run, None, spread=True, mask=seen), o)
    spread = run.spreads.get(point)
    return limit if spread is None else within(limit, spread, o, seen)


def _chosen_alike(run: BlockRun, seen: NDArray[np.bool_] | None, axes: int) -> NDArray[np.bool_] | None:
    """Where tensors are looked at: not of tokens whose experts are a near tie, which a bug may turn too."""
    ties = run.near_ties()
    if ties is None or not ties.any() or ties.all():
        return seen
    judged = ~ties.reshape(-1, *(1,) * (axes - 1))
    return judged if seen is None else seen & judged
