"""What of a page is said in words: findings, what a wrong tensor looks like, who is off, the ladder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.report.checkpoint_sources import CheckpointSource, checkpoint_sources
from llama_ckpt.report.operator_pictures import pictures
from llama_ckpt.report.page_parts import Section, folded, marked, number, section, table
from llama_ckpt.report.view import DrawnPoint, View
from llama_ckpt.report.words import MEASURES, WHO

__all__ = ["explained", "findings", "ladder", "next_tokens", "verdicts"]

MOST_ROWS = 40
"""So many rows of the table of verdicts; the JSON has them all."""

OPEN_ROWS = 6
"""So many of them stand open: on a phone a row is a card."""


def findings(seen: View) -> list[Section]:
    """What is wrong with the dump itself, or which checkpoints fail."""
    title = "Failing checkpoints" if seen.checkpoints else "The dump itself"
    rows = (
        f"<li><b>{escape(kind)}</b> {escape(message)}<small>{escape(hint)}</small></li>"
        for kind, message, hint in seen.findings
    )
    inner = "".join(rows)
    return section(title, "", [f"<ul class='findings'>{inner}</ul>"] if inner else [])


def explained(seen: View) -> list[Section]:
    """What the first wrong points look like, and what people get wrong there."""
    first, *others = [_card(found) for found in seen.explained] or [""]
    more = [folded(f"{len(others)} more", "".join(others))] if others else []
    return section("What it looks like", "", [first, *more, *_mistakes(seen)])


def _card(found: Mapping[str, Any]) -> str:
    """One diagnosis: named bugs, what the residual looks like, the smallest limit."""
    size = f"<small>error {number(found['err'])}</small>"
    lines = [f"<h3><code>{escape(found['point'])}</code> {size}</h3><ul>"]
    operators = list(found.get("identified", ())[:2])
    for bug in found["named"][:4]:
        left = number(bug["remaining_error"])
        mark = "explains it" if bug["explained"] else "a part of the truth: something else as well"
        if not bug["explained"] and bug.get("beyond") is not None:
            mark = f"explains all but {100 * bug['beyond']:.2g}% of the elements"
        same = [one for one in operators if one["sentence"] == bug["sentence"]]
        operators = [one for one in operators if one not in same]
        sure = "".join(f"; {_certain(one)}{''.join(pictures(one['parameters']))}" for one in same)
        lines.append(f"<li><b>{escape(bug['sentence'])}</b>")
        asked = f"; <code>llama-ckpt explain {escape(bug['name'])}</code>" if bug is found["named"][0] else ""
        lines.append(f" <small>{mark}; remaining error {left}{sure}{asked}</small></li>")
    for group in found["indistinguishable"][:2]:
        lines.append(f"<li>not to be told apart from this tensor: {escape(', '.join(group))}</li>")
    lines += [_operator(one) for one in operators]
    if found.get("facts"):
        lines.append(f"<li>{escape(found['facts'])}</li>")
    for one in found["structure"][:3]:
        left = number(one["remaining_error"])
        part = "" if one["explained"] else "a part of the truth; "
        lines.append(f"<li>{escape(one['sentence'])} <small>{part}remaining error {left}</small></li>")
    hidden = max(len(found["named"]) - 4, 0) + max(len(found["structure"]) - 3, 0)
    if hidden:
        lines.append(f"<li>and {hidden} more that explain it less well, in the JSON</li>")
    least = found["smallest_limit"]
    if least:
        times = f"{least['factor']:.3g} times what is allowed"
        lines.append(f"<li>would pass with {times} ({MEASURES[least['metric']]})</li>")
    return f"<article>{''.join(lines)}</ul></article>"


def _operator(one: Mapping[str, Any]) -> str:
    """What was identified: how sure that is, the code that usually does it, and a picture."""
    alike = "".join(f"; or, alike here: {escape(other)}" for other in one["alike"])
    drawn = "".join(pictures(one["parameters"]))
    return f"<li><b>{escape(one['sentence'])}</b>{alike} <small>{_certain(one)}</small>{drawn}</li>"


def _certain(one: Mapping[str, Any]) -> str:
    """How sure it is, and the code that usually does it."""
    more = [one["certainty"], f"usually {one['code']}" if one["code"] else ""]
    return escape("; ".join(part for part in more if part))


def _mistakes(seen: View) -> list[str]:
    """Of the checkpoints that the first wrong points belong to what they are, and the usual mistakes."""
    try:
        known = checkpoint_sources()
    except LlamaCkptError:  # a folder of theirs is called `checkpoints`
        return []
    about = [one for one in known if one.id in seen.about or set(one.points) & set(seen.about)]
    return [_source(one) for one in about[:1]]


def _source(one: CheckpointSource) -> str:
    wrong = "".join(f"<li>{marked(mistake)}</li>" for mistake in one.mistakes)
    call = f"<p><code>{escape(one.function + one.signature)}</code></p>"
    torch = f"<p>In torch: {marked(one.torch_function)}.</p>" if one.torch_function else ""
    inner = f"<ul>{wrong}</ul>{call}<pre>{escape(one.doc)}</pre>{torch}"
    summary = f"What people get wrong there, and the formula: checkpoint {one.id}, {one.title}"
    return folded(summary, inner)


def ladder(seen: View) -> list[Section]:
    """The checkpoints of a validation."""
    heads = ("id", "verdict", "checkpoint", "compared", "seconds")
    rows = [
        (
            one["id"],
            one["verdict"],
            one["title"],
            f"{one['compared']} of {one['of']}",
            f"{one['seconds']:.1f}",
        )
        for one in seen.checkpoints
    ]
    return section("The ladder", "", [table(heads, rows)] if rows else [])


HEADS = ("point", "verdict", "your error", "reference's error", "allowed", "who is off", "made")


def verdicts(seen: View) -> list[Section]:
    """What failed, or where somebody else is off, what is only inherited folded."""
    listed = [one for one in seen.judged if one.failed or one.verdict["blame"] in ("reference", "tie")]
    listed.sort(key=lambda one: (not one.failed, one.kind != "own"))
    own = {(one.name, one.dump) for one in listed if one.kind == "own" and one.failed}
    shown: list[DrawnPoint] = []
    others: list[DrawnPoint] = []
    for one in listed:  # the total error of what is wrong by itself says no more
        again = one.kind == "total" and (one.name, one.dump) in own
        (others if again or one.made == "inherited" else shown).append(one)
    parts = list(_rows(shown, OPEN_ROWS))
    if others:
        inherited = sum(one.made == "inherited" for one in others)
        word = f"{len(others)} more, of which {inherited} inherit an error"
        parts.append(folded(word, "".join(_rows(others))))
    text = "What failed, and where the reference is off: each error is against what is exact."
    return section("Who is off", text, parts)


def next_tokens(seen: View) -> list[Section]:
    """The likeliest token after each row, and who is off."""
    return section("Likeliest next tokens", "", _next_tokens(seen))


def _next_tokens(seen: View) -> Iterator[str]:
    if seen.tokens:
        heads = ("after row", "yours", "wanted", "exact", "margin", "noise", "who is off")
        wrong, n = sum(bool(token["blame"]) for token in seen.tokens), len(seen.tokens)
        yield folded(
            f"{wrong} of {n} are others" if wrong else f"all {n} as wanted", table(heads, _tokens(seen))
        )


def _rows(listed: Sequence[DrawnPoint], n_open: int = MOST_ROWS) -> Iterator[str]:
    """A table of the first, and the others folded."""
    made = [_verdict_row(one) for one in listed[:MOST_ROWS]]
    if made:
        yield table(HEADS, made[:n_open])
    left = f"<p class='lead'>and {len(listed) - MOST_ROWS} more, in the JSON.</p>"
    rest = left if len(listed) > MOST_ROWS else ""
    if made[n_open:]:
        yield folded(f"{len(listed) - n_open} more like these", table(HEADS, made[n_open:]) + rest)
    else:
        yield rest


def _verdict_row(one: DrawnPoint) -> tuple[str, ...]:
    found = one.verdict
    name = f"{one.name} {one.kind}" + (f" {one.dump}" if one.dump else "")
    numbers = (number(found[key]) for key in ("err", "err_reference", "limit"))
    return (name, found["verdict"], *numbers, WHO[found["blame"]], one.made or "—")


def _tokens(seen: View) -> list[tuple[str, ...]]:
    return [
        (
            str(token["row"]),
            str(token["got"]),
            str(token["wanted"]),
            "—" if token["exact"] is None else str(token["exact"]),
            number(token["margin"]),
            number(token["noise"]),
            WHO[token["blame"]],
        )
        for token in seen.tokens[:MOST_ROWS]
    ]
