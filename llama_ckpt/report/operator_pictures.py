"""What was identified, drawn where a picture says it: positions by row, keys seen, a curve, coefficients.

Colours are classes that the page's style sheet fills, as in `charts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["pictures"]

SIDE = 200.0
"""Units of a picture's longer side."""

MOST = 512
"""Rows and keys that a map shows at most: of more it would be too fine to read."""


def pictures(parameters: Mapping[str, Any]) -> Iterator[str]:
    """SVG texts of the parameters that can be drawn.

    Args:
        parameters: of an identified operator, as in its JSON; of several products, by their points.
    """
    for value in parameters.values():
        if isinstance(value, dict) and not {"x", "y"} <= value.keys():
            yield from pictures(value)
    for names, draw in DRAWN.items():
        values = [parameters.get(name) for name in names]
        if all(value and isinstance(value, list | dict) for value in values):
            yield draw(*values)


def _positions(got: Sequence[float], own: Sequence[float]) -> str:
    """The position that each row was turned by, beside the right one."""
    return _lines({"total": list(enumerate(got)), "allowed": list(enumerate(own))}, "row", "position")


def _frequencies(got: Sequence[float], own: Sequence[float]) -> str:
    """How fast each pair was turned, beside the right speed."""
    return _lines({"total": list(enumerate(got)), "allowed": list(enumerate(own))}, "pair", "radians")


def _coefficients(values: Sequence[float]) -> str:
    """With which weight each column was summed."""
    return _lines({"total": list(enumerate(values))}, "column", "coefficient")


def _curve(points: Mapping[str, Sequence[float]]) -> str:
    """What was applied to the gate, from one end of it to the other."""
    return _lines({"total": sorted(zip(points["x"], points["y"], strict=True))}, "gate", "factor")


def _lines(lines: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> str:
    every = [point for line in lines.values() for point in line]
    low_x, high_x = min(x for x, _ in every), max(x for x, _ in every)
    low_y, high_y = min(y for _, y in every), max(y for _, y in every)
    wide, tall = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0
    left, bottom = 46.0, SIDE - 30.0

    def at(x: float, y: float) -> str:
        across_it, up_it = (SIDE * 1.6 - left) * (x - low_x) / wide, (bottom - 8) * (y - low_y) / tall
        return f"{left + across_it:.1f},{bottom - up_it:.1f}"

    parts = [
        f'<polyline points="{" ".join(at(x, y) for x, y in line)}" class="line {css}"/>'
        for css, line in lines.items()
    ]
    for value, y in ((low_y, bottom), (high_y, 12.0)):
        parts.append(f'<text x="{left - 4}" y="{y:.0f}" text-anchor="end" class="axis">{value:.4g}</text>')
    for value, x, anchor in ((low_x, left, "start"), (high_x, SIDE * 1.6, "end")):
        place = f'x="{x:.0f}" y="{bottom + 14}" text-anchor="{anchor}"'
        parts.append(f'<text {place} class="axis">{value:.4g}</text>')
    parts.append(f'<text x="{left}" y="{SIDE - 2}" class="axis">{escape(up)} by {escape(across)}</text>')
    return _svg(SIDE * 1.6 + 4, SIDE, parts, f"{up} by {across}")


def _keys(rows: Sequence[Sequence[Sequence[int]]]) -> str:
    """The keys that each row saw, a row a line; what lies beyond the diagonal is later than the row."""
    n = len(rows)
    if n > MOST:
        return ""
    cell = SIDE / n
    parts = []
    for row, runs in enumerate(rows):
        for first, last in runs:
            tip = f"token {row} sees keys {first} to {last}"
            parts.append(
                f'<rect x="{first * cell:.2f}" y="{row * cell:.2f}" width="{(last - first + 1) * cell:.2f}" '
                f'height="{cell:.2f}" class="bar"><title>{escape(tip)}</title></rect>'
            )
    parts.append(f'<line x1="0" y1="0" x2="{SIDE}" y2="{SIDE}" class="allowed line"/>')
    parts.append(f'<text x="0" y="{SIDE + 14}" class="axis">keys seen by each row</text>')
    return _svg(SIDE, SIDE + 18, parts, "keys seen by each row")


def _outputs(rows: Sequence[int]) -> str:
    """Which row of the matrix each output is."""
    return _map(rows, "output", "row of the matrix")


def _inputs(columns: Sequence[int]) -> str:
    """Which input each column of the matrix met."""
    return _map(columns, "column", "input")


def _map(taken: Sequence[int], across: str, up: str) -> str:
    """What stands at each place, a square each, the right places as a line."""
    if not all(isinstance(one, int) for one in taken):
        return ""
    if len(taken) > MOST:
        return _lines({"total": list(enumerate(taken))}, across, up)
    n = max(len(taken), max(taken) + 1)
    cell = SIDE / n
    parts = [f'<line x1="0" y1="0" x2="{SIDE}" y2="{SIDE}" class="allowed line"/>']
    for place, one in enumerate(taken):
        tip = f"{across} {place}: {up} {one}"
        where = f'x="{place * cell:.2f}" y="{one * cell:.2f}" width="{cell:.2f}" height="{cell:.2f}"'
        parts.append(f'<rect {where} class="bar"><title>{escape(tip)}</title></rect>')
    parts.append(f'<text x="0" y="{SIDE + 14}" class="axis">{escape(up)} by {escape(across)}</text>')
    return _svg(SIDE, SIDE + 18, parts, f"{up} by {across}")


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    box = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width * 1.5:g}px"'
    return f'<svg {box} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


DRAWN: Mapping[tuple[str, ...], Callable[..., str]] = {
    ("positions", "own"): _positions,
    ("frequencies", "own"): _frequencies,
    ("keys_seen",): _keys,
    ("coefficients",): _coefficients,
    ("curve",): _curve,
    ("columns",): _coefficients,
    ("outputs",): _outputs,
    ("rows",): _outputs,
    ("inputs",): _inputs,
}
"""Parameters that are drawn together, and how."""
