"""The corpus of reported faults as lines of text, each with a style for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # records to be read; importing what makes them would load torch
    from llama_ckpt.mutants.real.report import RealReport

__all__ = ["lines"]

Line = tuple[str, str]

NAME, POINT = 31, 24
STYLES = {"rightly": "", "half": "yellow", "not named": "yellow", "wrongly": "bold red"}


def lines(report: RealReport) -> Iterator[Line]:
    """A row an entry, what was said of those that were not named rightly, right programs, and the figures."""
    yield f"{'fault':{NAME}} {'caught':7} {'first seen at':{POINT}} named", "dim"
    for row in report.bugs:
        points = ", ".join(sorted({run.at or "-" for run in row.runs}))
        place = points if row.right_point else f"{points} (!)"
        caught = "yes" if row.caught else "NO"
        style = STYLES[row.naming] if row.caught else "bold red"
        yield f"{row.bug.name:{NAME}} {caught:7} {place:{POINT}} {row.naming}", style
        if row.naming != "rightly":
            yield f"    said: {row.said or 'nothing'}", "dim"
    yield "", ""
    for control in report.right:
        if control.condemned:
            yield f"condemned, and right: {control.right.name} on {control.condemned} prompts", "bold red"
    yield from ((line, "bold") for line in _figures(report))


def _figures(report: RealReport) -> Iterator[str]:
    for group, title in report.titles.items():
        counts = report.figures(group)
        if counts["entries"]:
            of = counts["entries"]
            yield (
                f"{of} {title}: {counts['caught']} caught, {counts['right_point']} at the right point, "
                f"{counts['rightly']} named rightly, {counts['half']} half, {counts['not_named']} not, "
                f"{counts['wrongly']} wrongly"
            )
    if report.right:
        yield f"{len(report.right)} right programs: {report.condemned} condemned"
