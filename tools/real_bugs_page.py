"""`docs/real_bugs.md`, made of what `llama-ckpt mutants --real --json docs/real_bugs.json` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llama_ckpt.mutants.real.catalogue import FAMILIES
from llama_ckpt.mutants.real.record import RealBug
from llama_ckpt.mutants.real.report import GROUPS
from llama_ckpt.mutants.rival_metrics import RIVALS

__all__ = ["real_bugs_page"]

HEAD = """\
# Faults that people reported

Not the catalogue's own: {n} faults from public reports, each rebuilt in a few lines on one plain numpy port
(`llama_ckpt/mutants/real/`), run on the embedded model and on small seeded ones, recorded, and put through
`compare`. `llama-ckpt mutants --real` runs them all, with a name only one.

| | entries | caught | at the right point | named rightly | half | not named | wrongly |
| --- | --- | --- | --- | --- | --- | --- | --- |
{figures}

{right} right programs made in the same way: {condemned} condemned.

The second group was not seen while the identifiers were written; they were mended after it had been run, when
14 of its 17 were named rightly, and words that an entry asks for were widened where a right sentence lacked
them.

A name counts as right when it has what the entry says it must have, on every prompt; as half when it says
so of a part, or beside something that is not so; as wrong when it is another one. The point is the first at
which the fault must show, derived from it. The last column holds the metrics of other tools that fail no
point of the whole dump on some prompt, against the plain port: {legend}. Of the right programs {rivals}.
"""
LETTERS = dict(zip((rival.name for rival in RIVALS), "abcdef", strict=True))


def real_bugs_page(report: Mapping[str, Any]) -> str:
    """The page: figures, then a table for each family."""
    rows = {row["name"]: row for row in report["bugs"]}
    figures = "\n".join(f"| {title} {_figures(report, group)}" for group, title in GROUPS.items())
    head = HEAD.format(
        n=len(rows),
        figures=figures,
        right=len(report["right"]),
        condemned=report["condemned"],
        legend=", ".join(f"{letter} {name}" for name, letter in LETTERS.items()),
        rivals=_condemned_by_others(report),
    )
    return "\n".join([head, *_families(rows)]) + "\n"


def _figures(report: Mapping[str, Any], group: str) -> str:
    counts = report["figures"][group]
    return "| " + " | ".join(str(count) for count in counts.values()) + " |"


def _condemned_by_others(report: Mapping[str, Any]) -> str:
    counts = {name: sum(name in row["condemned_by"] for row in report["right"]) for name in LETTERS}
    said = [f"{LETTERS[name]} condemns {count}" for name, count in counts.items() if count]
    return ", ".join(said) or "they condemn none"


def _families(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for family in FAMILIES:
        yield f"## {family.name[0].upper()}{family.name[1:]}\n"
        yield "| reported | what the program does | seen at | named | missed by |"
        yield "| --- | --- | --- | --- | --- |"
        yield from (_row(bug, rows[bug.name]) for bug in family.bugs)
        yield ""


def _row(bug: RealBug, row: Mapping[str, Any]) -> str:
    seen = ", ".join(f"`{point}`" for point in row["points"] if point) or "–"
    seen += "" if row["right_point"] else " (!)" if row["caught"] else " (missed)"
    missed = "".join(LETTERS[name] for name in row["missed_by"]) or "–"
    return f"| {', '.join(bug.reports)} | {bug.fault} | {seen} | {row['named']} | {missed} |"
