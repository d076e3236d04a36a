"""What every page of a report is made of: sections with headings, tables, folded parts, numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

__all__ = ["Section", "badge", "contents", "document", "folded", "marked", "number", "section", "table"]


BADGES = {"pass": "pass", "fail": "fail", "arithmetic": "differs"}
"""A verdict to its badge's word and class."""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: of its heading.
        lead: HTML that says what is shown.
        inner: HTML.
        named: what a link to it says; "" for what follows from the title.
    """

    title: str
    lead: str
    inner: str
    named: str = ""

    @property
    def anchor(self) -> str:
        """What a link leads to."""
        return self.named or self.title.lower().replace(" ", "-")

    def html(self, *, of: str = "", level: int = 2) -> str:
        """The section.

        Args:
            of: what its anchor begins with, where one page has several of this title.
            level: of its heading.
        """
        lead = f"<p class='lead'>{self.lead}</p>" if self.lead else ""
        heading = f"<h{level}>{escape(self.title)}</h{level}>"
        return f"<section id='{of}{self.anchor}'>{heading}{lead}{self.inner}</section>\n"


def section(title: str, lead: str, parts: Iterable[str]) -> list[Section]:
    """A section; none where there is nothing in it."""
    inner = "".join(parts)
    return [Section(title, lead, inner)] if inner else []


def document(title: str, body: str) -> str:
    """A page around its body, with the style that all have."""
    style = (files(__package__) / "page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>llama_ckpt: {escape(title)}</title>\n<style>\n{style}</style>\n"
        f"</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def badge(verdict: str) -> str:
    """A verdict's word, on its colour."""
    word = BADGES[verdict]
    return f"<span class='badge {word}'>{word.upper()}</span>"


def contents(sections: Iterable[Section]) -> str:
    """Links to the sections that there are."""
    links = "".join(f"<a href='#{one.anchor}'>{escape(one.title)}</a>" for one in sections)
    return f"<nav aria-label='Sections'>{links}</nav>\n"


def folded(summary: str, inner: str) -> str:
    """What is there for who asks: closed at first; on paper all of it."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def marked(text: str) -> str:
    """Names between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], css: str = "") -> str:
    """A table; on a phone each row becomes a card, its cells labelled by the headings.

    Args:
        css: a class, "" for none.
    """
    wrong = " class='wrong'"
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(
        f"<tr class='{escape(row[1]) if row[1] in ('pass', 'fail', 'skipped', 'hidden') else ''}'>"
        + "".join(
            f"<td data-label='{escape(label)}'{wrong * (' FAIL ' in cell)}>{escape(cell)}</td>"
            for label, cell in zip(heads, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    named = f" class='{css}'" if css else ""
    return f"<table{named}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def number(value: float | None) -> str:
    """A figure in two digits; "—" for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "—"
    return "0" if value == 0 else f"{value:.1e}"
