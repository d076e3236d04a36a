"""Several dumps side by side as one page: who is nearest to what is exact where, then each one's own page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape

from llama_ckpt.report import charts
from llama_ckpt.report.headline import Record
from llama_ckpt.report.page_drawings import legend
from llama_ckpt.report.page_of_one import sections
from llama_ckpt.report.page_parts import Section, badge, contents, document, folded, number, section, table
from llama_ckpt.report.side_by_side import NEAREST, by_checkpoint, by_point, lettered, nearest_counts
from llama_ckpt.report.view import Curve, View, view

__all__ = ["page_of_several"]

COLOURS = 6
"""So many dumps have a colour of their own; a letter stands beside each."""

MOST_LETTERS = 2
"""So many letters stand in a cell; of more, how many they are."""

LONGEST_ROW = 16
"""So many blocks of a map stand in one row, so that two letters fit a cell."""


def page_of_several(report: Record, facts: Iterable[tuple[str, str]] = ()) -> str:
    """The whole page.

    Args:
        report: the JSON of several dumps' report.
        facts: as of `page`.
    """
    seen = {one["name"]: view(one["report"]) for one in report["dumps"]}
    facts = list(facts)
    for one in seen.values():
        one.provenance += facts
    letters = lettered(report)
    parts = [
        *section("Who is nearest to what is exact", escape(NEAREST), _tables(report)),
        *section("Block by block", "Each dump's total error at the end of its blocks.", _curves(seen)),
        *section("Point by point", _map_text(report), _maps(report)),
    ]
    details = [_details(letters[name], name, one) for name, one in seen.items()]
    body = "".join(_head(report, seen)) + contents([*parts, *details])
    body += "".join(one.html() for one in [*parts, *details])
    return document(f"{len(seen)} dumps side by side, {report['verdict']}", body)


def _head(report: Record, seen: dict[str, View]) -> Iterator[str]:
    yield f"<header><p class='kind'>llama_ckpt · {len(seen)} dumps side by side</p>"
    yield f"<h1>{badge(report['verdict'])} {escape(report['reason'])}</h1>"
    yield "<div class='cards'>"
    for place, (name, one) in enumerate(seen.items()):
        yield _card(lettered(report)[name], place, name, one)
    yield "</div></header>\n"


def _card(letter: str, place: int, name: str, one: View) -> str:
    """One dump: its verdict and what it looks like."""
    shown = ("compared", "precision", "rounds as", "first wrong", "made")
    facts = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>" for key, text in one.facts if key in shown
    )
    return (
        f"<article><h2>{_key(letter, place)} {escape(name)}</h2>"
        f"<p>{badge(one.verdict)} {escape(one.sentence)}</p>"
        f"<dl class='facts'>{facts}</dl>"
        f"<p class='more'><a href='#{letter.lower()}'>Everything about {letter}</a></p></article>"
    )


def _key(letter: str, place: int) -> str:
    return f"<span class='letter {_css(place)}'>{letter}</span>"


def _css(place: int) -> str:
    return f"d{place}" if place < COLOURS else "dn"


def _tables(report: Record) -> Iterator[str]:
    """By checkpoint, and folded by point."""
    (heads, rows), (more_heads, more) = by_checkpoint(report), by_point(report)
    yield table(heads, rows, css="figures") if rows else ""
    yield folded(f"By point: {len(more)}", table(more_heads, more, css="figures")) if more else ""


def _curves(seen: dict[str, View]) -> Iterator[str]:
    lines, keys = [], []
    for place, (letter, one) in enumerate(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", seen.values(), strict=False)):
        total = next((line.values for line in one.curves if line.name == "total"), ())
        lines.append(Curve(letter, total, css=_css(place)))
        keys.append(f"<span class='key'>{_key(letter, place)}</span>")
    chart = charts.curves(lines, "total error by block of each dump")
    if chart:
        yield f"<figure class='wide'><figcaption>{''.join(keys)}</figcaption>{chart}</figure>"
    rows = [
        (letter, _ends(one)) for letter, one in zip((line.name for line in lines), seen.values(), strict=True)
    ]
    drawn = charts.heat_map(rows, "total error at each block's end over what is allowed, by dump")
    if drawn:
        caption = "<figcaption>The same over what is allowed to each; up to 1 passes</figcaption>"
        yield f"<figure class='wide'>{caption}{drawn}</figure>{legend()}"


def _ends(one: View) -> list[tuple[float | None, str]]:
    """The total error at each block's end, over what is allowed."""
    found = {point.block: point for point in one.judged if point.point == "out" and point.kind == "total"}
    cells: list[tuple[float | None, str]] = []
    for block in range(max((key or 0 for key in found), default=-1) + 1):
        point = found.get(block)
        tip = (
            ""
            if point is None
            else f"block {block}: {point.verdict['err']}, allowed {point.verdict['limit']}"
        )
        cells.append((None if point is None else point.ratio, tip))
    return cells


def _map_text(report: Record) -> str:
    counts = nearest_counts(report["points"], report)
    said = ", ".join(
        f"{letter} at {n}" for letter, n in counts.items() if letter in lettered(report).values()
    )
    text = f"Whose error is the smallest, or within twice of it: {said} points; · where all are alike."
    return f"{text} On colour where an error is made."


def _maps(report: Record) -> Iterator[str]:
    """A letter for who is nearest, point by block."""
    letters = lettered(report)
    inside = [one for one in report["points"] if one["block"] is not None]
    there = {(one["point"], one["block"]): one for one in inside}
    n_blocks = max((one["block"] for one in inside), default=-1) + 1
    figures = []
    for first in range(0, n_blocks, LONGEST_ROW):
        blocks = range(first, min(first + LONGEST_ROW, n_blocks))
        names = dict.fromkeys(point for point, block in there if block in blocks)
        rows = [(name, [_mark(there.get((name, block)), letters) for block in blocks]) for name in names]
        drawn = charts.letter_map(rows, "who is nearest to what is exact, point by block", blocks=blocks)
        figures.append(f"<figure>{drawn}</figure>")
    if figures:
        yield f"<div class='pair'>{''.join(figures)}</div>"
    for one in report["points"]:
        if one["block"] is None and one["nearest"]:
            near = ", ".join(letters[name] for name in one["nearest"])
            yield f"<p class='legend'><code>{escape(one['name'])}</code> {near}</p>"


def _mark(one: Record | None, letters: Mapping[str, str]) -> tuple[str, str, str]:
    """A cell's class, tip and letters; "·" where all are alike."""
    if one is None:
        return "none", "", ""
    errors = ", ".join(
        f"{letter} {number(e)}" for letter, e in zip(letters.values(), one["errors"], strict=True)
    )
    tip = f"{one['name']}, {one['error_kind']} error: {errors}"
    near = [letters[name] for name in one["nearest"]]
    if not near:
        return "alike", tip, "·"
    text = "".join(near) if len(near) <= MOST_LETTERS else str(len(near))
    if all(made in (None, "", "inherited") for made in one["made"]):
        return "rounding", tip, text
    return (_css(list(letters.values()).index(near[0])) if len(near) == 1 else "dn"), tip, text


def _details(letter: str, name: str, seen: View) -> Section:
    """One dump's own page, folded, below a heading that links lead to."""
    inner = "".join(one.html(of=f"{letter.lower()}-", level=3) for one in sections(seen))
    return Section(
        f"{letter}: {name}", escape(seen.sentence), folded("All of its page", inner), letter.lower()
    )
