"""The verdict on a tensor that is too large to be held at once: the same as `judge`'s, a few rows at a time.

Scores of 2,048 tokens and 32 heads are 134 million numbers, and a verdict needs each of them, the oracle's,
what rounding allows it, and the difference. So each run of rows is made, measured and let go of. What a row
is measured against is known only when all have been seen, where one is next to nothing: then such are looked
at once more. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.metrics import floored_norms
from llama_ckpt.judging.rows_seen import Rows, Seen
from llama_ckpt.judging.tally import Tally
from llama_ckpt.judging.verdict import PointVerdict, against_reference, problems

__all__ = ["Rows", "judge_by_rows", "parts"]

Array: TypeAlias = NDArray[Any]

PART = 1 << 20
"""So many elements are in memory at a time, several times over: 2 MB each in float64."""


def parts(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of a tensor in runs that fit into memory."""
    step = max(1, PART // max(1, math.prod(shape[1:])))
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def judge_by_rows(
    name: str,
    shape: tuple[int, ...],
    made: Callable[[], Iterable[Rows]],
    limit: Limit,
    *,
    tally: Tally | None = None,
    norms: Array | None = None,
) -> tuple[PointVerdict, Limit]:
    """Judge a tensor.

    Args:
        name: the full name of its point; shape: its own.
        made: gives all its rows, in order, as often as it is called.
        limit: the table's; where rows have a spread, it follows from that.
        tally: counts the errors.
        norms: of the oracle's rows, where they are known beforehand; it spares going through them twice.

    Returns:
        The verdict, and the limit that it was held to.
    """
    seen = Seen(limit, None if norms is None else floored_norms(norms))
    for rows in made():
        seen.add(rows)
    if norms is None:
        seen.floor(made)
    if tally is not None:
        tally.add_counts(name, limit.error_kind, seen.counts)
    held = limit if seen.bad else seen.limit()
    return _verdict(name, shape, seen, held), held


def _verdict(name: str, shape: tuple[int, ...], seen: Seen, limit: Limit) -> PointVerdict:
    def place(at: tuple[int, int]) -> tuple[int, ...]:
        rest = tuple(int(i) for i in np.unravel_index(at[1], shape[1:]))
        return (at[0], *rest)

    facts = PointVerdict(name, limit.error_kind, "pass", "", "", limit=limit.err, n_judged=seen.n)
    for whose, words in (("o", "the oracle's own tensor, so some input,"), ("x", "it")):
        if whose in seen.bad:
            at, got, wanted, count = seen.bad[whose]
            value = got if whose == "x" else wanted
            reason = f"{words} is not finite: {value} first at {list(place(at))}, {count} of {seen.n}"
            facts = replace(facts, index=place(at), got=got, wanted=wanted, n_differ=count)
            return replace(facts, verdict="fail", blame="yours", reason=reason)
    found, (most, at, got, wanted) = seen.errors(), seen.largest
    # The worst row and element and what they are allowed were found together: that they are is all asked.
    each = replace(limit, elements=limit.rows)
    nearest, share = each.nearest(found)
    facts = replace(
        facts,
        err=found.err,
        max_abs=most,
        index=place(at),
        got=got,
        wanted=wanted,
        n_differ=seen.n_differ,
        worst_row_err=found.row_err,
        worst_row=found.row,
        gain=1.0 + found.gain,
        bias=found.bias,
        nearest=nearest,
        share=share,
    )
    norm = seen.norm
    if "theirs2" in seen.sums:
        theirs = math.sqrt(seen.sums["theirs2"]) / norm
        closer: Any = "equal" if found.err == theirs else "yours" if found.err < theirs else "reference"
        apart = math.sqrt(seen.sums["apart2"]) / norm
        facts = replace(facts, err_reference=theirs, distance=apart, closer=closer)
    wrong = problems(found, each)
    if wrong:
        return replace(facts, verdict="fail", blame="yours", reason="; ".join(wrong))
    if "theirs2" not in seen.sums:
        reason = f"error {facts.err:.1e} within the allowed {facts.limit:.1e}; llama.cpp: not compared"
        return replace(facts, reason=reason)
    return against_reference(facts, seen.sums["theirs2"], math.nan)
