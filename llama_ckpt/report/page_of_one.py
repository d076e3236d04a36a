"""The page of a ladder or of a comparison: its head, and the sections that it has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from llama_ckpt.report.page_drawings import first_tensor, growth, histograms, maps, tokens_map
from llama_ckpt.report.page_parts import Section, badge, contents, document, folded, marked, section
from llama_ckpt.report.page_words import explained, findings, ladder, next_tokens, verdicts
from llama_ckpt.report.view import View, view
from llama_ckpt.report.words import WORDS
from llama_ckpt.version import __version__

__all__ = ["page_of_one", "sections"]

LONG = 200
"""A fact of so many characters, such as the tokens of a long prompt, is folded."""

PARTS = (
    findings,
    explained,
    verdicts,
    first_tensor,
    ladder,
    growth,
    maps,
    tokens_map,
    next_tokens,
    histograms,
)


def page_of_one(report: Mapping[str, Any], facts: Iterable[tuple[str, str]] = ()) -> str:
    """The whole page.

    Args:
        report: the JSON of a ladder's or a comparison's report, as read or as `to_json` gives it.
        facts: names and texts that are said with the provenance: the command, the day.
    """
    seen = view(report)
    seen.provenance += facts
    parts = sections(seen)
    body = "".join(_head(seen)) + contents(parts) + "".join(one.html() for one in parts)
    return document(f"{seen.title}, {seen.verdict}", body)


def sections(seen: View) -> list[Section]:
    """What the page has below its head."""
    return [one for part in (*PARTS, _provenance) for one in part(seen)]


def _head(seen: View) -> Iterator[str]:
    yield f"<header><p class='kind'>llama_ckpt · {escape(seen.title)}</p>"
    yield f"<h1>{badge(seen.verdict)} {escape(seen.sentence)}</h1>"
    yield "<dl class='facts'>"
    yield from (f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in seen.facts)
    yield "</dl>"
    for why, command in seen.steps:
        yield f"<p class='next'><b>Next:</b> {escape(why)}"
        yield f"<code>{escape(command)}</code></p>" if command else "</p>"
    words = "".join(f"<dt>{word}</dt><dd>{marked(meaning)}</dd>" for word, meaning in WORDS.items())
    yield folded("What the words mean", f"<dl class='words'>{words}</dl>")
    yield "</header>\n"


def _provenance(seen: View) -> list[Section]:
    """The dump, the command and the day; of the reference and the model, folded, all that is known."""
    facts = [*seen.provenance, ("llama_ckpt", __version__)]
    more = [one for one in facts if one[0].startswith(("reference: ", "model: ")) or len(one[1]) > LONG]
    notes = "".join(f"<li>{escape(note)}</li>" for note in seen.notes)
    parts = [_facts([one for one in facts if one not in more])] + ([f"<ul>{notes}</ul>"] if notes else [])
    parts += [folded("More of the run, the reference and the model", _facts(more))] if more else []
    return section("Provenance", "", parts)


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    rows = [f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts]
    return f"<dl class='facts long'>{''.join(rows)}</dl>"
