"""Charts as SVG text: curves on a logarithmic axis, heat maps, histograms.

Colours are classes that the page's style sheet fills, so that one chart reads in light and in dark. All
are drawn 420 units wide: on a phone that is about what there is, so the letters keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby

from llama_ckpt.report.view import Curve

__all__ = ["LEVELS", "curves", "heat_map", "histogram", "letter_map", "level"]

WIDTH = 420
LEVELS = ("≤ 0.1", "≤ 0.5", "≤ 1", "≤ 10", "≤ 100", "≤ 1000", "more")
"""The steps of a heat map, error over what is allowed; a class `l0` to `l6` each, else `bad` or `none`."""

TALLEST = 420.0
"""A map of many rows is no taller: its rows are lower, and not each has its label."""

BOUNDS = (0.1, 0.5, 1.0, 10.0, 100.0, 1000.0)


def level(ratio: float | None) -> str:
    """The class of a cell: `l0` to `l6`, `bad` where it failed without a figure, `none` without a verdict."""
    if ratio is None or math.isnan(ratio):
        return "none"
    if math.isinf(ratio):
        return "bad"
    return f"l{sum(ratio > bound for bound in BOUNDS)}"


def _svg(height: float, parts: Sequence[str], label: str, width: float = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", css: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'


def _superscript(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def curves(lines: Sequence[Curve], label: str) -> str:
    """Lines over the blocks, powers of ten upwards; a value that is missing or 0 leaves a gap."""
    values = [v for line in lines for v in line.values if v]
    n = max((len(line.values) for line in lines), default=0)
    if not values or not n:
        return ""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high += high == low
    left, top, right, bottom = 38.0, 8.0, WIDTH - 14.0, 220.0

    def x(block: int) -> float:
        return left + (right - left) * (block / max(n - 1, 1))

    def y(value: float) -> float:
        return bottom - (bottom - top) * (math.log10(value) - low) / (high - low)

    parts = []
    step = max(1, math.ceil((high - low) / 8))
    for power in range(low, high + 1, step):
        at = y(10.0**power)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(_text(left - 4, at + 4, _superscript(power), "end", "axis"))
    for block in _ticks(n):
        parts.append(_text(x(block), bottom + 15, str(block), "middle", "axis"))
    parts.append(_text((left + right) / 2, bottom + 30, "block", "middle", "axis"))
    for line in lines:
        css = line.css or line.name
        for run in _runs(line.values):
            points = " ".join(f"{x(block):.1f},{y(value):.1f}" for block, value in run)
            parts.append(f'<polyline points="{points}" class="line {css}"/>')
            if len(run) == 1 or line.css or line.name in ("own", "total"):
                parts += [
                    f'<circle cx="{x(b):.1f}" cy="{y(v):.1f}" r="2" class="dot {css}">'
                    f"<title>{escape(line.name)}, block {b}: {v:.2e}</title></circle>"
                    for b, v in run
                ]
        last = [(block, value) for block, value in enumerate(line.values) if value]
        if line.css and last:
            parts.append(_text(x(last[-1][0]) + 4, y(last[-1][1] or 1.0) + 4, line.name, css="axis"))
    return _svg(bottom + 36, parts, label)


def _ticks(n: int) -> list[int]:
    step = max(1, math.ceil(n / 8))
    step = next((nice for nice in (1, 2, 4, 5, 8, 10, 16, 20, 32) if nice >= step), step)
    return list(range(0, n, step))


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Stretches of blocks that have a value above 0."""
    numbered = [(block, value) for block, value in enumerate(values)]
    stretches = groupby(numbered, key=lambda pair: bool(pair[1]))
    return [[(b, v) for b, v in stretch if v] for there, stretch in stretches if there]


def heat_map(
    rows: Sequence[tuple[str, Sequence[tuple[float | None, str]]]], label: str, *, across: str = "block"
) -> str:
    """A map of cells, a row a label.

    Args:
        rows: a label, and for each column the ratio that gives the colour and the text of its tip.
        label: of the whole, for those who cannot see it.
        across: what the columns count.
    """
    cells = [[(level(ratio), tip, "") for ratio, tip in row] for _, row in rows]
    return _map([name for name, _ in rows], cells, label, across, range(0))


def letter_map(
    rows: Sequence[tuple[str, Sequence[tuple[str, str, str]]]], label: str, *, blocks: range
) -> str:
    """A map of cells with a letter in each.

    Args:
        rows: a label, and for each block the class of the cell, the text of its tip, and what stands in it.
        label: of the whole, for those who cannot see it.
        blocks: the numbers of the columns.
    """
    return _map([name for name, _ in rows], [cells for _, cells in rows], label, "block", blocks)


def _map(
    names: Sequence[str],
    rows: Sequence[Sequence[tuple[str, str, str]]],
    label: str,
    across: str,
    columns: range,
) -> str:
    n = max(map(len, rows), default=0)
    if not n:
        return ""
    left, top = 84.0, 4.0
    width, height = (WIDTH - left - 2) / max(n, len(columns)), min(15.0, TALLEST / len(rows))
    gap = 0.8 if width > 4 else 0.0
    tall = height - min(1.0, height / 8)
    named = math.ceil(11 / height)  # a label needs so many rows
    parts = []
    for place, (name, cells) in enumerate(zip(names, rows, strict=True)):
        y = top + place * height
        if place % named == 0:
            parts.append(_text(left - 5, y + height / 2 + 3.5, name, "end", "axis"))
        for column, (css, tip, letter) in enumerate(cells):
            if css == "none":
                continue
            x = left + column * width
            parts.append(
                f'<rect x="{x:.2f}" y="{y:.1f}" width="{width - gap:.2f}" '
                f'height="{tall:.1f}" class="{css}"><title>{escape(tip)}</title></rect>'
            )
            if letter:
                parts.append(_text(x + (width - gap) / 2, y + 11, letter, "middle", "in"))
    bottom = top + len(rows) * height
    for column in _ticks(n):
        at = left + (column + 0.5) * width
        number = columns[column] if columns else column
        parts.append(_text(at, bottom + 13, str(number), "middle", "axis"))
    parts.append(_text(left - 5, bottom + 13, across, "end", "axis"))
    return _svg(bottom + 18, parts, label)


def histogram(edges: Sequence[int], counts: Sequence[int], limit: float | None, label: str) -> str:
    """Bars over powers of ten, as high as the logarithm of their counts; a line at what is allowed."""
    width, height, bottom = 200.0, 92.0, 66.0
    bar = width / len(counts)
    tallest = math.log10(1 + max(counts)) or 1.0
    parts = []
    for place, count in enumerate(counts):
        if not count:
            continue
        tall = (bottom - 6) * math.log10(1 + count) / tallest
        beyond = limit is not None and limit > 0 and edges[place] >= math.log10(limit)
        tip = f"{_superscript(edges[place])} to {_superscript(edges[place + 1])}: {count} elements"
        parts.append(
            f'<rect x="{place * bar:.1f}" y="{bottom - tall:.1f}" width="{bar - 1:.1f}" height="{tall:.1f}" '
            f'class="{"over" if beyond else "bar"}"><title>{escape(tip)}</title></rect>'
        )
    parts.append(f'<line x1="0" x2="{width}" y1="{bottom}" y2="{bottom}" class="grid"/>')
    if limit:
        at = min(max((math.log10(limit) - edges[0]) * bar, 0.0), width)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="2" y2="{bottom}" class="allowed line"/>')
    for place in range(0, len(edges), 4):
        anchor = "start" if place == 0 else "middle"
        parts.append(_text(place * bar, bottom + 17, _superscript(edges[place]), anchor, "axis"))
    return _svg(height - 6, parts, label, width)
