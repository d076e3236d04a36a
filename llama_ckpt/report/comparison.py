"""A comparison of somebody's dump as lines of text: the strip of layers, the first wrong point, what to do.

    layer          0         1         2         3
                   01234567890123456789012345678901
    own            ·······█························
    inherited      ········▄▄▄▅▅▅▆▆▆▇▇▇████████████

A cell's height is the error over its limit, by powers of ten: a dot is within half of the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # records to be read
    from llama_ckpt.comparing.comparison import ComparedPoint, Comparison, LayerErrors
    from llama_ckpt.diagnose.records import Diagnosis

__all__ = ["Line", "cell", "comparison_lines", "strip"]

Line: TypeAlias = list[tuple[str, str]]
"""Parts of a line, each with its style: "", "dim", "bold", "green", "yellow", "red", "bold red"."""

CELLS = "·▁▂▃▄▅▆▇█"
WIDTH = 64
"""Layers in one row of a strip."""

STATES = {"pass": ("pass", "green"), "fail": ("FAIL", "bold red")}
MADE = {
    "here": "the error is made here: its inputs are right",
    "inherited": "inherited: the step itself is right, its inputs were off",
    "unknown": "whether made here or inherited cannot be told without the oracle",
}
BLAME = {
    "yours": "yours",
    "reference": "llama.cpp",
    "noise": "nobody: the two differ by rounding",
    "tie": "nobody: two tokens within rounding of each other",
    "unknown": "cannot be told without the oracle",
    "": "nobody",
}
MOST_LINES = 8
"""So many further wrong points, findings and tokens are listed."""


def cell(ratio: float) -> tuple[str, str]:
    """One layer: error over limit as a character and a style."""
    if math.isnan(ratio):
        return " ", ""
    if ratio <= 1.0:
        return (CELLS[0], "green") if ratio <= 0.5 else (CELLS[1], "yellow")
    height = 2 + min(6, math.floor(math.log10(ratio)))
    return CELLS[height], "yellow" if height < 4 else "red"


def strip(layers: Sequence[LayerErrors]) -> Iterator[Line]:
    """The layers' own and inherited error, and llama.cpp's, a character each."""
    rows: dict[str, list[float]] = {
        "own": [one.own / one.own_limit for one in layers],
        "inherited": [one.inherited / one.limit for one in layers],
        "total": [one.total / one.limit for one in layers],
        "llama.cpp": [one.reference / one.limit for one in layers],
    }
    for first in range(0, len(layers), WIDTH):
        part = layers[first : first + WIDTH]
        yield [(f"{'layer':<15}{''.join(_tens(one.block) for one in part)}", "dim")]
        yield [(f"{'':<15}{''.join(str(one.block % 10) for one in part)}", "dim")]
        for name, ratios in rows.items():
            cells = [cell(ratio) for ratio in ratios[first : first + WIDTH]]
            if any(character != " " for character, _ in cells):
                yield [(f"{name:<15}", ""), *cells]


def _tens(block: int) -> str:
    return str(block // 10 % 10) if block % 10 == 0 else " "


def comparison_lines(report: Comparison) -> Iterator[Line]:
    """Everything that the terminal shows."""
    yield from _header(report)
    yield from _findings(report)
    if report.layers:
        yield []
        yield from strip(report.layers)
        yield [
            ("               error over limit: · within, ▁ close, then a step for each power of ten", "dim")
        ]
    yield []
    first = report.first_wrong
    if first is not None:
        yield from _first_wrong(report, first)
    yield from _tokens(report)
    yield from _plain(report)
    yield []
    word, style = STATES[report.verdict]
    yield [(word, style), (f"  {report.reason}", "")]
    yield [(f"compared {report.compared} of {report.of} points in {report.seconds:.1f} s", "")]
    for step in report.next:
        yield [("next: ", "bold"), (step.why + (":" if step.command else ""), "")]
        if step.command:
            yield [(f"    {step.command}", "")]


def _header(report: Comparison) -> Iterator[Line]:
    theirs = report.theirs
    facts = f"{theirs['tensors']} tensors, {len(report.token_ids)} tokens, {report.dtype}"
    yield [("yours          ", "dim"), (f"{theirs['path']}: {facts}", "")]
    if report.reference is not None:
        name = report.reference["dump"] or "not compared"
        yield [
            ("llama.cpp      ", "dim"),
            (f"{report.reference['path']}: {name}; {report.reference['producer']}", ""),
        ]
    if report.model is not None:
        yield [("oracle         ", "dim"), (f"float64, weights of {report.model['path']}", "")]


def _findings(report: Comparison) -> Iterator[Line]:
    for finding in report.findings[:MOST_LINES]:
        yield [("lint           ", "dim"), (finding.kind, "bold red"), (f"  {finding.message}", "")]
        if finding.hint:
            yield [(f"               {finding.hint}", "dim")]
    more = len(report.findings) - MOST_LINES
    if more > 0:
        yield [(f"               and {more} more", "dim")]


def _first_wrong(report: Comparison, first: ComparedPoint) -> Iterator[Line]:
    yield [("first wrong    ", "dim"), (first.name, "bold red"), (f"  {MADE[first.made]}", "")]
    if first.own is not None:
        reads = f", given your {', '.join(first.read)}" if first.read else ""
        yield _fact("own error", f"{_ratio(first.own.err, first.own.limit)}{reads}")
        if first.computed:
            yield _fact("", f"not recorded, so computed from what is before: {', '.join(first.computed)}")
    if first.total is not None:
        yield _fact("total", _ratio(first.total.err, first.total.limit))
        if not math.isnan(first.total.err_reference):
            yield _fact("llama.cpp's", f"{first.total.err_reference:.1e}")
    leading = first.leading
    yield _fact("reason", leading.reason)
    if leading.index is not None and not math.isnan(leading.got):
        where = f"at {list(leading.index)}: got {leading.got:.9g}, wanted {leading.wanted:.9g}"
        yield _fact(
            "largest", f"{where}; {leading.n_differ} of {leading.n_judged} elements beyond their limit"
        )
    yield _fact("who is off", BLAME[first.blame])
    for number, found in enumerate(report.diagnoses):
        yield from _diagnosis(found, number == 0)
    others = [point for point in report.points if point.made and point is not first]
    made = [point.name for point in others if point.made == "here"]
    if made:
        more = f" and {len(made) - MOST_LINES} more" if len(made) > MOST_LINES else ""
        yield _fact("made here too", ", ".join(made[:MOST_LINES]) + more)
    inherited = sum(point.made == "inherited" for point in others)
    if inherited:
        yield _fact("inherited", f"{inherited} points after it are off only because their inputs are")


def _diagnosis(found: Diagnosis, leading: bool) -> Iterator[Line]:
    sentence = found.sentence()
    if sentence:
        where = "" if leading else f"{found.point}: "
        yield [
            (f"{'looks like' if leading else '':<15}", "dim"),
            (where + sentence, "bold" if leading else ""),
        ]
    if leading and found.smallest_limit is not None:
        least = found.smallest_limit
        text = f"{least.factor:.3g} times the limit ({least.metric} {getattr(least, least.metric):.3g})"
        yield _fact("would pass", f"with {text}")


def _ratio(err: float, limit: float) -> str:
    if math.isnan(err):
        return "cannot be measured"
    return f"{err:.2e}, limit {limit:.2e}" if limit else f"{err:.2e}, wanted equality"


def _fact(name: str, text: str) -> Line:
    return [(f"{name:<15}", "dim"), (text, "")]


def _tokens(report: Comparison) -> Iterator[Line]:
    if not report.tokens:
        return
    differing = [token for token in report.tokens if token.blame]
    n = len(report.tokens)
    whose = "llama.cpp's" if report.reference and report.reference["dump"] else "the oracle's"
    equal = sum(token.got == token.wanted for token in report.tokens)
    yield _fact("greedy", f"{equal} of {n} tokens equal to {whose}")
    for token in differing[:MOST_LINES]:
        who = BLAME[token.blame]
        margin = "" if math.isnan(token.margin) else f", margin {token.margin:.1e}, noise {token.noise:.1e}"
        yield _fact("", f"after row {token.row}: got {token.got}, wanted {token.wanted}{margin}; off: {who}")


def _plain(report: Comparison) -> Iterator[Line]:
    for line in report.cannot_tell:
        yield _fact("cannot tell", line)
    for note in report.notes:
        yield _fact("note", note)
