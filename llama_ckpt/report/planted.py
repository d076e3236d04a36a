"""What became of bugs that were planted in programs that round on purpose: lines and a table for a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llama_ckpt.report.pages import markdown_table

if TYPE_CHECKING:  # records to be read; importing what makes them would load torch
    from llama_ckpt.mutants.declared.report import PlantedProgram, PlantedReport, PlantedRow

__all__ = ["planted_lines", "planted_page"]

HEAD = ("program", "bugs", "caught", "at the right point", "named", "by their own name", "right", "condemned")
FIGURES = ("bugs", "caught", "right_point", "named", "by_name", "right", "alarms")


def planted_lines(report: PlantedReport) -> Iterator[tuple[str, str]]:
    """A line with its style for each bug that was not caught, seen and named as it should be; the totals."""
    for program in report.programs:
        for row in program.rows:
            if not (row.named and row.run.at_the_right_point):
                yield _row_line(program, row), "" if row.run.caught else "bold red"
        for run in program.right:
            if run.caught:
                yield f"{program.arithmetic.name}: right, and condemned at {run.seen}: {run.said}", "bold red"
    for program in report.programs:
        yield f"{program.arithmetic.name}: {_totals(program.figures())}", "green" if program.kept else "red"


def _row_line(program: PlantedProgram, row: PlantedRow) -> str:
    run = row.run
    seen = f"seen at {run.seen}" if run.caught else "not caught"
    return (
        f"{program.arithmetic.name}: {row.bug.name}, made at {run.at} ({run.moved:.1e}), {seen}: {run.said}"
    )


def _totals(counts: Mapping[str, int]) -> str:
    return (
        f"of {counts['bugs']} bugs {counts['caught']} caught, {counts['right_point']} at the right point, "
        f"{counts['named']} named ({counts['by_name']} by their own name); "
        f"of {counts['right']} right runs {counts['alarms']} condemned"
    )


def planted_page(found: Mapping[str, Any]) -> str:
    """The section of docs/arithmetic.md; found: the report's JSON."""
    programs = found["programs"]
    rows = (
        (f"`{one['arithmetic']['name']}`", *(str(one["figures"][key]) for key in FIGURES)) for one in programs
    )
    left = [(one["arithmetic"]["name"], bug) for one in programs for bug in one["bugs"] if "said" in bug]
    lines = [PAGE, "", *markdown_table(HEAD, rows), "", LEFT, ""]
    lines += markdown_table(
        ("program", "bug", "made at", "seen at", "what is said"),
        (
            (f"`{name}`", f"`{bug['name']}`", bug["at"], bug["seen"] or "not caught", bug["said"])
            for name, bug in left
        ),
    )
    return "\n".join(lines) + "\n"


PAGE = """\
## Bugs behind the rounding

Every bug of the catalogue that a whole run may have, planted in programs that round on purpose, each recorded
and compared as it declares (`llama-ckpt mutants --arithmetic NAME`). A bug is counted where it moves a point
by more than float32's rounding, and is no rounding that the program makes anyway; where it must be seen
follows from the program itself. One is named where the diagnosis puts it first, or says the operator that
gives the tensors whole."""

LEFT = "Those that were not put first by their own name, or were seen elsewhere:"
