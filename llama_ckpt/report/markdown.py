"""A report as a short Markdown text: for a pull request, a step's summary, a chat.

The sentence first, then what is wrong with its numbers, then what to do; a passing run is three lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from llama_ckpt.report.headline import Record, failures, headline
from llama_ckpt.report.pages import markdown_table

__all__ = ["markdown"]

MOST = 20
"""So many failures are listed; the JSON has all."""

MARKS = {"pass": "✅ pass", "fail": "❌ FAIL", "arithmetic": "⚠️ differs"}


def markdown(report: Record) -> str:
    """The report as Markdown.

    Args:
        report: the JSON of a ladder's or of a comparison's report.
    """
    lines = _compared(report) if report.get("kind") == "comparison" else _ladder(report)
    return "\n".join(lines) + "\n"


def _head(report: Record) -> Iterator[str]:
    word, _, reason = headline(report).partition(": ")
    yield f"### llama_ckpt: {MARKS[word]}"
    yield ""
    yield _text(reason)
    yield ""


def _compared(report: Record) -> Iterator[str]:
    yield from _head(report)
    wrong = [one for one in report["points"] if one["made"] in ("here", "between", "unknown")]
    if wrong:
        heads = ("point", "made", "error", "allowed", "who is off")
        yield from markdown_table(heads, (_cells(one) for one in wrong[:MOST]))
        inherited = sum(one["made"] == "inherited" for one in report["points"])
        more = [f"{len(wrong) - MOST} more"] if len(wrong) > MOST else []
        more += [f"{inherited} points inherit an error"] if inherited else []
        if more:
            yield ""
            yield "; ".join(more) + "."
        yield ""
    yield from _listed(report)
    for step in report["next"]:
        yield f"- next: {_step(step)}"
    if report["next"]:
        yield ""
    yours = report["yours"]["path"]
    yield f"`{yours}`: {report['compared']} of {report['of']} points compared, {report['dtype']}."


def _cells(point: Record) -> tuple[str, ...]:
    judged = [one for one in (point["own"], point["total"]) if one]
    shown = next((one for one in judged if one["verdict"] == "fail"), judged[-1])
    return (
        f"`{point['name']}`",
        point["made"],
        _number(shown["err"]),
        _number(shown["limit"]),
        point["blame"],
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _listed(report: Record) -> Iterator[str]:
    """Further failures than the one that the headline tells of."""
    further = [one for one in failures(report) if one.sentence != report["reason"]]
    for one in islice(further, MOST):
        where = f"`{one.where}`: " if one.where else ""
        yield f"- {where}{_text(one.sentence)}" + (f" ({_text(one.hint)})" if one.hint else "")
    if further:
        yield ""


def _step(step: Record) -> str:
    return f"`{step['command']}`, {_text(step['why'])}" if step["command"] else _text(step["why"])


def _ladder(report: Record) -> Iterator[str]:
    yield from _head(report)
    rows = (
        (
            one["id"],
            one["title"],
            MARKS.get(one["verdict"], one["verdict"]),
            f"{one['compared']} of {one['of']}",
        )
        for one in report["checkpoints"]
    )
    yield from markdown_table(("checkpoint", "", "verdict", "compared"), rows)
    found = list(islice(failures(report), MOST))
    if found:
        yield ""
    for one in found:
        yield f"- {one.where}: {_text(one.sentence)}; `{one.hint}`"


def _text(text: str) -> str:
    """Plain text in which Markdown and HTML find nothing of theirs."""
    for sign in "\\`*_<>|[]#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
