"""A validation as lines of text: a row a checkpoint, and below it the first point that fails.

    id  checkpoint       verdict compared     your error reference's error  allowed
    1   RMSNorm          pass    384 of 384      4.1e-08           5.2e-08  4.0e-07

The numbers of a row are those of the point that comes closest to what is allowed, or of the first that
fails. Lines of the table are at most 80 wide; `report/words.py` has what is said before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llama_ckpt.points import split_name
from llama_ckpt.report.comparison import cell
from llama_ckpt.report.words import LADDER, MEASURES, WHO

if TYPE_CHECKING:  # records to be read; importing what makes them would load torch
    from llama_ckpt.judging.verdict import PointVerdict
    from llama_ckpt.ladder.report import CheckpointResult, JudgedPoint, LadderReport

__all__ = ["checkpoint_row", "failure_lines", "header", "summary_lines"]

WIDTHS = (3, 16, 7, 12, 10, 17, 8)
HEADINGS = ("id", "checkpoint", "verdict", "compared", "your error", "reference's error", "allowed")
RIGHT = range(4, 7)  # the numbers
REST = 36  # columns for a sentence in the place of the numbers
FEW_BLOCKS = 4  # below so many a strip shows less than the names do
MAX_NAMED = 6  # further failing points that are named after the one that is shown in full


def header() -> tuple[str, ...]:
    """What the words mean, and the line of headings."""
    return (*LADDER, _row(HEADINGS))


def checkpoint_row(result: CheckpointResult) -> str:
    """One checkpoint in one line: what was compared, how far off, and whether it passes."""
    compared = f"{result.compared} of {result.of}"
    head = (result.id, result.title.partition(":")[0], _shouted(result.verdict), compared)
    shown = _shown_point(result.points)
    if shown is None:
        reason = result.reason.removeprefix("skipped: ")
        return _row((*head, reason if len(reason) <= REST else reason[: REST - 1] + "…"))
    point = shown.verdict
    limit = "equal" if point.limit == 0 else _number(point.limit)
    return _row((*head, _number(point.err), _number(point.err_reference), limit))


def _shouted(verdict: str) -> str:
    return "FAIL" if verdict == "fail" else verdict


def _row(cells: Sequence[str]) -> str:
    """A line of the table; with one cell in the place of the numbers, that one is a sentence."""
    numbers = RIGHT if len(cells) == len(WIDTHS) else ()
    padded = (
        cell.rjust(WIDTHS[place]) if place in numbers else cell.ljust(WIDTHS[place])
        for place, cell in enumerate(cells)
    )
    return " ".join(padded).rstrip()


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "0" if value == 0 else f"{value:.1e}"


def _shown_point(points: Sequence[JudgedPoint]) -> JudgedPoint | None:
    """The first point that fails, which is told of below the row; else the one closest to its limit."""
    failing = (point for point in points if point.verdict.verdict == "fail")
    return next(failing, None) or max(points, key=_share, default=None)


def _share(point: JudgedPoint) -> float:
    """How much of its limit a point uses; -1 where it has no error, or none of its own making."""
    verdict = point.verdict
    share = verdict.err / verdict.limit if verdict.limit else verdict.err
    carried = verdict.limit and verdict.verdict == "pass" and share > 1
    return -1.0 if math.isnan(share) or carried else share


BRIEF = ("first wrong", "error", "who is off", "inherited", "looks like", "repeat", "next")
"""What is told of a failure at first, six lines at most; with `verbose` all of it.

An inherited failure is explained where it is made, so it has no line on what it looks like.
"""


def failure_lines(
    result: CheckpointResult, *, device: str, dtype: str, repeat: str, verbose: bool = True
) -> Iterator[str]:
    """The first point that fails and how to repeat it; `verbose`: all about it, and the others' names."""
    failing = [point for point in result.points if point.verdict.verdict == "fail"]
    if not failing:
        yield f"    {result.reason}"
        return
    first, rest = failing[0], failing[1:]
    kind = "recording" if "/" in first.dump else "the situation"  # a recording is folder/name
    where = f"its {first.verdict.error_kind} error, in {kind} {first.dump}"
    more = "" if verbose else ", or repeat with -v"
    facts = {
        "first wrong": f"{first.verdict.shown_name}: {where}",
        "error": _error(first.verdict),
        "reason": first.verdict.reason if _measured(first.verdict) else "",
        **_difference(first.verdict),
        "who is off": WHO[first.verdict.blame],
        "computed": f"in {dtype} on {device}",
        "recording": first.dump,
        "inherited": _inherited(failing),
        **_strips(result.points, first),
        **({} if _inherited(failing) else _explained(result)),
        "stands on": result.reason.partition("it stands on ")[2],
        "also fail": _named(rest),
        "repeat": repeat,
        "next": f"llama-ckpt explain {result.id}{more}",
    }
    for name, fact in facts.items():
        if fact and (verbose or name in BRIEF):
            yield f"    {name:<12}{fact}"


def _measured(point: PointVerdict) -> bool:
    """Whether the error itself is what is too large; else the reason says what is."""
    return point.limit > 0 and point.err > point.limit


def _error(point: PointVerdict) -> str:
    """The error against what is allowed; where that is not what fails, what does."""
    if not _measured(point) or point.reason.startswith("differs from itself"):
        return point.reason
    return f"{point.err:.1e}, {point.err / point.limit:.3g} times the allowed {point.limit:.1e}"


def _strips(points: Sequence[JudgedPoint], first: JudgedPoint) -> dict[str, str]:
    """The first failing kind of point over the blocks, own and total; nothing where there are few blocks."""
    kind = split_name(first.verdict.name)[1]
    found: dict[str, dict[int, str]] = {"own": {}, "total": {}}
    for point in points:
        block, name = split_name(point.verdict.name)
        if block is not None and name == kind and point.dump == first.dump and point.verdict.limit:
            error_kind = "own" if point.verdict.error_kind == "own" else "total"
            found[error_kind][block] = cell(point.verdict.err / point.verdict.limit)[0]
    return {
        f"{name} error": "".join(cells.get(block, " ") for block in range(max(cells) + 1))
        + f"  {kind}, by block"
        for name, cells in found.items()
        if len(cells) >= FEW_BLOCKS
    }


def _explained(result: CheckpointResult) -> dict[str, str]:
    """What the first failure looks like, and the smallest limit that would pass."""
    if not result.diagnoses:
        return {}
    sentences = [one.sentence() for one in result.diagnoses if one.sentence()]
    least = result.diagnoses[0].smallest_limit
    passing = "" if least is None else f"{least.factor:.3g} times what is allowed ({MEASURES[least.metric]})"
    return {"looks like": sentences[0] if sentences else "", "would pass": passing}


def _inherited(failing: Sequence[JudgedPoint]) -> str:
    if any(point.verdict.error_kind == "own" for point in failing):
        return ""
    return "no own error is beyond what is allowed, so look at the layers before this one"


def _difference(point: PointVerdict) -> dict[str, str]:
    """Where the largest difference is and what stands there."""
    index = "" if point.index is None else str(list(point.index))
    most = "" if math.isnan(point.max_abs_limit) else f", allowed {point.max_abs_limit:.3g}"
    differ = f"{point.n_differ} of {point.n_judged} elements beyond what is allowed"
    return {
        "index": index,
        "got": "" if math.isnan(point.got) else f"{point.got:.9g}",
        "wanted": "" if math.isnan(point.wanted) else f"{point.wanted:.9g}",
        "difference": "" if math.isnan(point.max_abs) else f"{point.max_abs:.3g}{most}",
        "differing": differ if point.n_judged else "",
    }


def _named(points: Sequence[JudgedPoint]) -> str:
    names = list(dict.fromkeys(f"{point.verdict.shown_name} ({point.dump})" for point in points))
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def summary_lines(report: LadderReport) -> Iterator[str]:
    """What it all comes to, the notes last."""
    passed = sum(result.verdict == "pass" for result in report.checkpoints)
    hidden = [result.id for result in report.checkpoints if result.verdict == "hidden"]
    total = len(report.checkpoints) - len(hidden)
    what = report.dtype if report.engine is None else f"the engine ({report.engine})"
    where = f"{report.model}, {what} on {report.device}, {report.seconds:.1f} s"
    yield f"{passed} of {total} checkpoints pass: {where}"
    if not report.n_compared:
        yield "nothing was compared, so nothing is known: exit code 1"
    if hidden:
        yield f"the engine shows nothing of checkpoint {', '.join(hidden)}: judged by what comes after"
    off = Counter(
        point.dump
        for result in report.checkpoints
        for point in result.points
        if point.verdict.blame == "reference"
    )
    if off:
        counts = ", ".join(f"{count} of {dump}" for dump, count in off.items())
        yield f"the reference itself is off, beyond what {report.dtype} allows, at points: {counts}"
    yield from report.notes
