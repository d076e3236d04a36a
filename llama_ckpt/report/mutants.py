"""The mutants' matrix as lines of text, each with a style for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # records to be read; importing what makes them would load torch
    from llama_ckpt.mutants.report import MutantReport

__all__ = ["lines"]

Line = tuple[str, str]

BUG_WIDTHS = (31, 7, 8, 14, 39)
VARIANT_WIDTHS = (25, 9, 8, 12)
METRIC_WIDTHS = (17, 12, 12, 18, 15)


def lines(report: MutantReport) -> Iterator[Line]:
    """The matrix of bugs, the benign variants, the metrics, and the totals."""
    yield _row(BUG_WIDTHS, ("bug", "wanted", "killed", "point", "seen by", "diagnosis")), "dim"
    for row in report.bugs:
        one = row.to_json()
        good = row.by_named_checkpoint and row.named_first
        yield _row(BUG_WIDTHS, _bug_cells(one)), "" if good else "bold red"
    yield "", ""
    yield _row(VARIANT_WIDTHS, ("benign variant", "dtype", "points", "false alarms")), "dim"
    for variant in report.variants:
        one = variant.to_json()
        cells = (one["name"], one["dtype"], one["points"], len(one["false_alarms"]))
        yield _row(VARIANT_WIDTHS, cells), "bold red" if one["false_alarms"] else ""
        yield from ((f"    {alarm}", "bold red") for alarm in one["false_alarms"][:5])
    yield "", ""
    headings = ("metric", "bugs missed", "always", "right float32", "right half")
    yield _row(METRIC_WIDTHS, headings) + "  (missed on some prompt, on all; right variants condemned)", "dim"
    for metric in report.rivals:
        missed = f"{metric['missed']} of {metric['of']}"
        condemned = (metric["condemned_float32"], metric["condemned_half"])
        yield _row(METRIC_WIDTHS, (metric["name"], missed, metric["always_missed"], *condemned)), ""
    yield "", ""
    yield from ((line, "bold") for line in _totals(report))


def _bug_cells(one: dict[str, Any]) -> tuple[str, ...]:
    runs = one["prompts"]
    killed = ", ".join(name or "survived" for name in one["killed_by"])
    if not runs:
        return (one["name"], one["checkpoint"], "-", "-", "-", "no prompt shows it")
    diagnosis = f"named {one['named_alone']} of {runs}"
    if one["named_in_group"]:
        diagnosis += f", {one['named_in_group']} alike with {', '.join(one['indistinguishable_from'])}"
    wrong = [
        name or "nothing"
        for name in one["called"]
        if name not in (one["name"], *one["indistinguishable_from"])
    ]
    diagnosis += f"; called {', '.join(wrong)}" if wrong else ""
    return (
        one["name"],
        one["checkpoint"],
        killed,
        ", ".join(one["points"]),
        ", ".join(one["saw"]),
        diagnosis,
    )


def _totals(report: MutantReport) -> Iterator[str]:
    totals, cases = report.totals(), report.cases
    yield (
        f"{totals['killed_by_named_checkpoint']} of {totals['bugs']} bugs killed by the checkpoint named, "
        f"{totals['killed']} by any"
    )
    yield (
        f"{totals['named_first']} always named first, {totals['indistinguishable']} of them on some prompt "
        "together with another"
    )
    yield f"{totals['benign']} benign variants, {totals['false_alarms']} false alarms"
    yield (
        f"{totals['seeds']} seeds, {len(report.prompts)} prompts, {cases['runs']} runs of bugs: "
        f"{cases['named_alone']} named alone, {cases['named_in_group']} in a group"
    )


def _row(widths: Iterable[int], cells: Iterable[object]) -> str:
    *rest, last = map(str, cells)
    padded = [cell.ljust(width) for cell, width in zip(rest, widths, strict=False)]
    return " ".join([*padded, last]).rstrip()
