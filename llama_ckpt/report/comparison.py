"""A comparison of somebody's dump as lines of text: the strip of layers, the first wrong point, what to do.

    layer          0         1         2         3
                   01234567890123456789012345678901
    own            ·······█························
    inherited      ········▄▄▄▅▅▅▆▆▆▇▇▇████████████

A cell's height is the error over what is allowed, by powers of ten: a dot is within half of it.
`report/words.py` has what is said before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from llama_ckpt.listing import listed, some
from llama_ckpt.report.words import COMPARISON, MEASURES, WHO

if TYPE_CHECKING:  # records to be read
    from llama_ckpt.comparing.comparison import ComparedPoint, Comparison, LayerErrors
    from llama_ckpt.diagnose.records import Diagnosis
    from llama_ckpt.identify.record import Identified

__all__ = ["Line", "cell", "comparison_lines", "strip"]

Line: TypeAlias = list[tuple[str, str]]
"""Parts of a line, each with its style: "", "dim", "bold", "green", "yellow", "red", "bold red"."""

CELLS = "·▁▂▃▄▅▆▇█"
WIDTH = 64
"""Layers in one row of a strip."""

STATES = {
    "pass": ("pass", "green"),
    "fail": ("FAIL", "bold red"),
    "arithmetic": ("differs", "bold yellow"),
}
"""A verdict's word and style; "differs" stands for roundings that were not declared and explain it all."""
MADE = {
    "here": "made here: its inputs are right",
    "between": "",
    "inherited": "inherited: its step is right, its inputs were off",
    "unknown": "made here or inherited: cannot be told without the model",
}
MOST_LINES = 8
"""So many further wrong points, findings and tokens are listed with `verbose`."""

FEW_LINES = 2
"""So many findings and tokens without."""


def cell(ratio: float) -> tuple[str, str]:
    """One layer: error over limit as a character and a style."""
    if math.isnan(ratio):
        return " ", ""
    if ratio <= 1.0:
        return (CELLS[0], "green") if ratio <= 0.5 else (CELLS[1], "yellow")
    height = 2 + min(6, math.floor(math.log10(ratio)))
    return CELLS[height], "yellow" if height < 4 else "red"


def strip(layers: Sequence[LayerErrors]) -> Iterator[Line]:
    """The layers' own, inherited and total error, and the reference's, a character each."""
    rows: dict[str, list[float]] = {
        "own": [one.own / one.own_limit for one in layers],
        "inherited": [one.inherited / one.limit for one in layers],
        "total": [one.total / one.limit for one in layers],
        "reference": [one.reference / one.limit for one in layers],
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


def comparison_lines(report: Comparison, *, verbose: bool = True) -> Iterator[Line]:
    """What the terminal shows: of a wrong point six lines at most, with `verbose` all that is known."""
    yield from ([(line, "dim")] for line in COMPARISON)
    yield []
    yield from _header(report)
    yield from _findings(report, MOST_LINES if verbose else FEW_LINES)
    if any(not math.isnan(one.total) for one in report.layers):
        yield []
        yield from strip(report.layers)
        yield [("  error / allowed: · to 0.5, ▁ to 1 (passes), ▂ to 10, ▃ to 100, … █ from 1e6", "dim")]
    yield []
    first = report.first_wrong
    if first is not None:
        yield from _first_wrong(report, first, verbose)
    yield from _tokens(report, MOST_LINES if verbose else FEW_LINES)
    yield from _plain(report)
    yield from _next(report)
    yield []
    word, style = STATES[report.verdict]
    reason = (
        report.reason if first is None or verbose else f"{first.name} is the first wrong point{report.where}"
    )
    yield [(word, style), (f"  {reason}", "")]
    yield [(f"compared {report.compared} of {report.of} points in {report.seconds:.1f} s", "")]


def _next(report: Comparison) -> Iterator[Line]:
    for step in report.next:
        yield _fact("next", f"{step.command}   # {step.why}" if step.command else step.why)


def _header(report: Comparison) -> Iterator[Line]:
    yours = report.theirs
    facts = f"{yours['tensors']} tensors, {len(report.token_ids)} tokens, {report.dtype}"
    yield _fact("yours", f"{_near(yours['path'])}: {facts}")
    if report.reference is not None:
        name = report.reference["dump"]
        path, producer = _near(report.reference["path"]), report.reference["producer"]
        yield _fact("reference", f"recording {name} of {path}" if name else f"{path}, not compared")
        yield _fact("", f"by {producer}")
    if report.model is not None:
        yield _fact("exact", f"float64, weights of {_near(report.model['path'])}")


def _near(path: str) -> str:
    """A path as a reader would type it: relative where it lies below the current folder."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def _findings(report: Comparison, most: int) -> Iterator[Line]:
    for finding in report.findings[:most]:
        yield [("in the dump    ", "dim"), (finding.kind, "bold red"), (f"  {finding.message}", "")]
        if finding.hint:
            yield [(f"               {finding.hint}", "dim")]
    more = len(report.findings) - most
    if more > 0:
        yield [(f"               and {more} more", "dim")]


def _first_wrong(report: Comparison, first: ComparedPoint, verbose: bool) -> Iterator[Line]:
    made = MADE[first.made] or first.where
    yield [("first wrong    ", "dim"), (first.name, "bold red"), (f"  {made}", "")]
    yield from _where(report)
    leading = first.leading
    size = _ratio(leading.err, leading.limit) or leading.reason
    if leading.err <= leading.limit and leading.verdict == "fail" and leading.reason != size:
        size += f", but {leading.reason.split('; ')[0]}"  # what else is measured, and was too far off
    yield _fact("error", f"{leading.error_kind} {size}")
    yield _fact("who is off", WHO[first.blame])
    shown = report.diagnoses if verbose else report.diagnoses[:1]
    if report.run_fault:
        yield [(f"{'looks like':<15}", "dim"), (report.run_fault, "bold")]
        shown = shown if verbose else []
    for number, found in enumerate(shown):
        yield from _diagnosis(found, number == 0 and not report.run_fault, verbose)
    if verbose:
        yield from _details(report, first)


def _where(report: Comparison) -> Iterator[Line]:
    """Call, sequence and position of a run of several, and on which ranks it is."""
    wrong = [one.rank for one in report.ranks if one.verdict == "fail"]
    of_ranks = "" if not wrong else "every rank" if len(wrong) == len(report.ranks) else ""
    if wrong and not of_ranks:
        of_ranks = f"rank{'s' * (len(wrong) > 1)} {listed(wrong)} of {len(report.ranks)}"
    words = [part for part in (report.where.strip().removeprefix("in "), of_ranks) if part]
    if words:
        yield _fact("where", "; ".join(words))


def _details(report: Comparison, first: ComparedPoint) -> Iterator[Line]:
    """All else about the first wrong point, and how many there are besides."""
    leading = first.leading
    if first.total is not None and first.total is not leading:
        yield _fact("total error", _ratio(first.total.err, first.total.limit) or first.total.reason)
    if first.own is not None and first.made == "between":
        yield _fact("own", f"made since {listed(first.since.sources)}")
        between = first.since.unseen[:-1]
        yield _fact("", f"not recorded: {some(between, MOST_LINES)}")
    elif first.own is not None and first.read:
        yield _fact("own", f"given your {', '.join(first.read)}")
    if first.total is not None and not math.isnan(first.total.err_reference):
        yield _fact("reference's", f"{first.total.err_reference:.1e}")
    yield _fact("reason", leading.reason)
    if leading.index is not None and not math.isnan(leading.got):
        where = f"at {list(leading.index)}: got {leading.got:.9g}, wanted {leading.wanted:.9g}"
        beyond = f"{leading.n_differ} of {leading.n_judged} elements beyond what is allowed"
        yield _fact("largest", f"{where}; {beyond}")
    others = [point for point in report.points if point.made and point is not first]
    made = [point.name for point in others if point.made in ("here", "between")]
    if made:
        more = f" and {len(made) - MOST_LINES} more" if len(made) > MOST_LINES else ""
        yield _fact("made here too", ", ".join(made[:MOST_LINES]) + more)
    inherited = sum(point.made == "inherited" for point in others)
    if inherited:
        yield _fact("inherited", f"{inherited} points after it are off only because their inputs are")


def _diagnosis(found: Diagnosis, leading: bool, verbose: bool) -> Iterator[Line]:
    sentence = found.sentence()
    if sentence:
        where = "" if leading else f"{found.point}: "
        yield [
            (f"{'looks like' if leading else '':<15}", "dim"),
            (where + sentence, "bold" if leading else ""),
        ]
    operator = found.operator
    if verbose and leading and operator is not None and operator.said() == sentence:
        yield from _operator(operator)
    if verbose and leading and found.smallest_limit is not None:
        least = found.smallest_limit
        measure = f"{MEASURES[least.metric]}, {getattr(least, least.metric):.3g}"
        yield _fact("would pass", f"with {least.factor:.3g} times what is allowed ({measure})")


def _operator(operator: Identified) -> Iterator[Line]:
    """What was identified: where, how sure that is, and the code that usually does it."""
    if operator.place.said():
        yield _fact("where", operator.place.said())
    yield _fact("how sure", operator.certainty())
    if operator.code:
        yield _fact("usually", operator.code)
    if operator.would_tell and operator.alike:
        yield _fact("would tell", operator.would_tell)


def _ratio(err: float, limit: float) -> str:
    """The error against what is allowed; nothing where it cannot be measured."""
    if math.isnan(err):
        return ""
    if not limit:
        return f"{err:.1e}, wanted equality"
    times = f"{err / limit:.3g} times the allowed" if err > limit else "within the allowed"
    return f"{err:.1e}, {times} {limit:.1e}"


def _fact(name: str, text: str) -> Line:
    return [(f"{name:<15}", "dim"), (text, "")]


def _tokens(report: Comparison, most: int) -> Iterator[Line]:
    if not report.tokens:
        return
    differing = [token for token in report.tokens if token.blame]
    n = len(report.tokens)
    whose = "the reference's" if report.reference and report.reference["dump"] else "exact's"
    equal = sum(token.got == token.wanted for token in report.tokens)
    yield _fact("tokens", f"after {equal} of {n} tokens the likeliest next one is {whose}")
    for token in differing[:most]:
        who = WHO[token.blame]
        margin = "" if math.isnan(token.margin) else f", margin {token.margin:.1e}, noise {token.noise:.1e}"
        yield _fact("", f"after row {token.row}: got {token.got}, wanted {token.wanted}{margin}; off: {who}")


def _plain(report: Comparison) -> Iterator[Line]:
    if report.arithmetic is not None:
        yield _fact("arithmetic", f"{report.arithmetic.known}: {report.arithmetic.sentence()}")
    for line in report.cannot_tell:
        yield _fact("cannot tell", line)
    for note in report.notes:
        yield _fact("note", note)
