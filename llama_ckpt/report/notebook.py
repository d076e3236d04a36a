"""A report's heart for a notebook: the verdict, the strip of layers, what is wrong, what to do. No script.

Styles stand on the elements, since a notebook takes none from elsewhere; colours stand beside words, and what
is not coloured is the page's own, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from llama_ckpt.report.comparison import cell
from llama_ckpt.report.headline import Record, headline
from llama_ckpt.report.side_by_side import NEAREST, by_checkpoint
from llama_ckpt.results import SIDE_BY_SIDE

__all__ = ["fragment", "rows"]

MOST = 10
"""So many points or checkpoints are listed; `to_rows` has all."""

MARKS = {"pass": ("PASS", "#1a7f37"), "fail": ("FAIL", "#c0362c"), "arithmetic": ("DIFFERS", "#9a6700")}

STRIP = (
    ("own", "own", "own_limit"),
    ("inherited", "inherited", "limit"),
    ("total", "total", "limit"),
    ("reference", "reference", "limit"),
)
"""A row of the strip: its name, the error, and what it may be."""

WIDTH = 64


def fragment(report: Record) -> str:
    """A piece of HTML.

    Args:
        report: the JSON of a ladder's, a comparison's or several dumps' report.
    """
    drawn = {"comparison": _compared, SIDE_BY_SIDE: _side_by_side}.get(report.get("kind", ""), _ladder)
    parts = drawn(report)
    return f'<div style="max-width: 60em; line-height: 1.45">{"".join(parts)}</div>'


def rows(report: Record) -> list[dict[str, Any]]:
    """A flat record for each point and kind of error."""
    if report.get("kind") == SIDE_BY_SIDE:
        return [{"dump": one["name"], **row} for one in report["dumps"] for row in rows(one["report"])]
    if report.get("kind") != "comparison":
        return [
            {"checkpoint": one["id"], "made": "", **_flat(point, point["name"], point["error_kind"])}
            | {"dump": point["dump"]}
            for one in report["checkpoints"]
            for point in one["points"]
        ]
    return [
        {**_flat(point[kind], point["name"], kind), "made": point["made"]}
        for point in report["points"]
        for kind in ("own", "total")
        if point[kind] is not None
    ]


_KEYS = ("verdict", "err", "limit", "max_abs", "worst_row", "worst_row_err", "gain", "bias", "err_reference")


def _flat(verdict: Record, name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "kind": kind, **{key: verdict[key] for key in _KEYS}, "reason": verdict["reason"]}


def _head(report: Record) -> Iterator[str]:
    word, _, reason = headline(report).partition(": ")
    mark, colour = MARKS[word]
    badge = f"border: 2px solid {colour}; color: {colour}; padding: 0 .4em; font-weight: bold"
    yield f'<p><span style="{badge}">{mark}</span> {escape(reason)}</p>'


def _compared(report: Record) -> Iterator[str]:
    yield from _head(report)
    lines = list(_strip(report["layers"]))
    if lines:
        yield f'<pre style="overflow-x: auto; line-height: 1.2">{escape(chr(10).join(lines))}</pre>'
    wrong = [one for one in report["points"] if one["made"] in ("here", "between", "unknown")]
    heads = ("wrong point", "made", "error", "allowed")
    yield from _table(heads, map(_cells, wrong[:MOST]))
    inherited = sum(one["made"] == "inherited" for one in report["points"])
    more = [f"{len(wrong) - MOST} more wrong points"] if len(wrong) > MOST else []
    more += [f"{inherited} points inherit an error"] if inherited else []
    more += [one["message"] for one in report["findings"][:MOST] if one["message"] not in report["reason"]]
    yield from (f"<p>{escape(line)}</p>" for line in more)
    yield from _steps((step["why"], step["command"]) for step in report["next"])
    counted = f"compared {report['compared']} of {report['of']} points, {report['dtype']}"
    yield f"<p><small>{escape(report['yours']['path'])}: {counted}</small></p>"


def _side_by_side(report: Record) -> Iterator[str]:
    yield from _head(report)
    dumps = [(one["name"], one["report"]["verdict"], one["report"]["reason"]) for one in report["dumps"]]
    yield from _table(("dump", "verdict", ""), dumps)
    heads, lines = by_checkpoint(report)
    yield from _table(heads, lines)
    yield f"<p><small>{escape(NEAREST)}</small></p>"


def _steps(steps: Iterable[tuple[str, str]]) -> Iterator[str]:
    for why, command in steps:
        yield f"<p>next: {escape(why)}" + (f" <code>{escape(command)}</code>" if command else "") + "</p>"


def _strip(layers: Sequence[Record]) -> Iterator[str]:
    """The layers' errors over what is allowed, a character each, as the terminal has them."""
    known = [one for one in layers if one["total"] is not None]
    for first in range(0, len(layers) if known else 0, WIDTH):
        part = layers[first : first + WIDTH]
        tens = "".join(f"{one['block'] // 10 % 10}" if one["block"] % 10 == 0 else " " for one in part)
        yield f"{'layer':<12}{tens}"
        yield f"{'':<12}{''.join(str(one['block'] % 10) for one in part)}"
        for name, error, allowed in STRIP:
            cells = "".join(cell(_ratio(one[error], one[allowed]))[0] for one in part)
            if cells.strip():
                yield f"{name:<12}{cells}"


def _ratio(error: float | None, allowed: float | None) -> float:
    return math.nan if error is None or not allowed else error / allowed


def _cells(point: Record) -> tuple[str, ...]:
    judged = [one for one in (point["own"], point["total"]) if one]
    shown = next((one for one in judged if one["verdict"] == "fail"), judged[-1])
    return point["name"], point["made"], _number(shown["err"]), _number(shown["limit"])


def _ladder(report: Record) -> Iterator[str]:
    yield from _head(report)
    heads = ("id", "checkpoint", "verdict", "compared", "")
    listed = (
        (
            one["id"],
            one["title"],
            one["verdict"],
            f"{one['compared']} of {one['of']}",
            one["reason"] if one["verdict"] != "pass" else "",
        )
        for one in report["checkpoints"]
    )
    yield from _table(heads, listed)
    yield f"<p><small>{escape(str(report['model']))}, {report['dtype']} on {report['device']}</small></p>"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    body = [
        "<tr>" + "".join(f'<td style="text-align: left">{escape(one)}</td>' for one in line) + "</tr>"
        for line in lines
    ]
    if body:
        head = "".join(f'<th style="text-align: left">{escape(one)}</th>' for one in heads)
        yield f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _number(value: float | None) -> str:
    return "—" if value is None else "0" if value == 0 else f"{value:.1e}"
