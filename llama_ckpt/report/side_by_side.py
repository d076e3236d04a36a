"""Several dumps side by side in figures: how large the errors of each are at a checkpoint, who is nearest.

The page, the terminal and a notebook show these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_uppercase

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.report.checkpoint_sources import checkpoint_sources
from llama_ckpt.report.comparison import STATES, Line
from llama_ckpt.report.headline import Record

__all__ = [
    "ALIKE",
    "NEAREST",
    "by_checkpoint",
    "by_point",
    "lettered",
    "nearest_counts",
    "side_by_side_lines",
]

ALIKE = "alike"

NEAREST = (
    "Of each dump the largest error, against what is exact, and how many points fail; nearest: at how many "
    "points whose error is the smallest or within twice of it, where that is not everybody's."
)

WIDTH = 80
"""Of a terminal."""

Table = tuple[list[str], list[list[str]]]


def lettered(report: Record) -> dict[str, str]:
    """A letter for each dump's name."""
    return dict(zip((one["name"] for one in report["dumps"]), ascii_uppercase, strict=False))


def by_checkpoint(report: Record) -> Table:
    """Headings and a row for each checkpoint whose points any dump has."""
    rows, seen = [], set()
    for title, names in _checkpoints():
        points = [one for one in report["points"] if one["point"] in names and one["point"] not in seen]
        seen |= set(names)
        if points:
            rows.append(_row(title, points, report))
    return _heads("checkpoint", report), rows


def by_point(report: Record) -> Table:
    """Headings and a row for each point, over all blocks."""
    found: dict[str, list[Record]] = {}
    for one in report["points"]:
        found.setdefault(one["point"], []).append(one)
    return _heads("point", report), [_row(name, points, report) for name, points in found.items()]


def nearest_counts(points: Sequence[Record], report: Record) -> dict[str, int]:
    """By letter, at how many points each is nearest; under `ALIKE` those at which nobody is."""
    counts = dict.fromkeys(lettered(report).values(), 0)
    for letter, name in zip(counts, lettered(report), strict=True):
        counts[letter] = sum(name in one["nearest"] for one in points)
    return {**counts, ALIKE: sum(not one["nearest"] for one in points)}


def _checkpoints() -> Iterator[tuple[str, tuple[str, ...]]]:
    """What a row is called, and the points that are its own."""
    try:
        for one in checkpoint_sources():
            yield f"{one.id} {one.title.partition(':')[0]}", one.points
    except LlamaCkptError:  # a folder of theirs is called `checkpoints`
        return


def _heads(first: str, report: Record) -> list[str]:
    return [first, *lettered(report).values(), "nearest"]


def _row(title: str, points: Sequence[Record], report: Record) -> list[str]:
    cells = [_cell(points, place) for place in range(len(report["dumps"]))]
    counts = nearest_counts(points, report)
    said = ", ".join(f"{letter} {n}" for letter, n in counts.items() if n and letter != ALIKE)
    return [title, *cells, f"{said} of {len(points)}" if said else ALIKE]


def _cell(points: Sequence[Record], place: int) -> str:
    made = [one["made"][place] for one in points]
    errors = [one["errors"][place] for one in points if one["errors"][place] is not None]
    wrong = sum(bool(one) and one != "inherited" for one in made)
    if all(one is None for one in made):
        return "—"
    size = ("0" if not max(errors) else f"{max(errors):.1e}") if errors else "no figure"
    return f"{size} FAIL {wrong}" if wrong else size


def side_by_side_lines(report: Record) -> Iterator[Line]:
    """What the terminal shows: each dump's verdict, then the checkpoints."""
    for one in report["dumps"]:
        letter, found = lettered(report)[one["name"]], one["report"]
        word, style = STATES[found["verdict"]]
        yield [(f"{letter} {one['name']}", "bold")]
        yield [(f"{'':<15}", ""), (word, style), (f"  {found['reason']}", "")]
    yield []
    yield from _figures(report)
    yield []
    word, style = STATES[report["verdict"]]
    yield [(word, style), (f"  {report['reason']}", "")]


def _figures(report: Record) -> Iterator[Line]:
    """The table of checkpoints; of many dumps only who is nearest, so that a line fits a terminal."""
    heads, rows = by_checkpoint(report)
    lines = _columns([heads, *rows])
    if max(map(len, lines)) > WIDTH:
        lines = _columns([[row[0], row[-1]] for row in (heads, *rows)])
    for number, line in enumerate(lines):
        yield [(line, "" if number else "dim")]
    if rows:
        yield [("the largest error of each, own where that is known; FAIL: made at so many points", "dim")]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]
