"""A report as one self-contained page: no script, nothing loaded, light and dark, printable.

page(report.to_json())        # of a ladder or of a comparison
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape, unescape
from importlib.resources import files
from typing import Any

from llama_ckpt.report import charts
from llama_ckpt.report.operator_pictures import pictures
from llama_ckpt.report.view import DrawnPoint, View, view
from llama_ckpt.report.words import MEASURES, WHO, WORDS
from llama_ckpt.version import __version__

__all__ = ["page"]

MOST_ROWS = 40
"""So many rows of the table of verdicts; the JSON has them all."""


def page(report: Mapping[str, Any], facts: Iterable[tuple[str, str]] = ()) -> str:
    """The whole page.

    Args:
        report: the JSON of a ladder's or a comparison's report, as read or as `to_json` gives it.
        facts: names and texts that are said with the provenance: the command, the day.
    """
    seen = view(report)
    seen.provenance += facts
    sections = (_findings, _explained, _verdicts, _first, _ladder, _growth, _maps, _tokens_map, _histograms)
    inner = "".join("".join(section(seen)) for section in (*sections, _provenance))
    body = "".join(_head(seen)) + _contents(inner) + inner
    style = (files(__package__) / "page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>llama_ckpt: {escape(seen.title)}, {seen.verdict}</title>\n<style>\n{style}</style>\n"
        f"</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _section(title: str, text: str, parts: Iterable[str]) -> Iterator[str]:
    """A section with a heading; nothing where there is nothing in it."""
    inner = "".join(parts)
    if inner:
        yield f"<section id='{_anchor(title)}'><h2>{escape(title)}</h2>"
        yield f"<p class='lead'>{text}</p>" if text else ""
        yield f"{inner}</section>\n"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _contents(sections: str) -> str:
    """Links to the sections that there are."""
    titles = re.findall(r"<section id='[^']*'><h2>([^<]*)</h2>", sections)
    links = "".join(f"<a href='#{_anchor(unescape(title))}'>{title}</a>" for title in titles)
    return f"<nav aria-label='Sections'>{links}</nav>\n"


def _folded(summary: str, inner: str) -> str:
    """What is there for who asks: closed at first; on paper all of it."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def _head(seen: View) -> Iterator[str]:
    word = {"pass": "pass", "fail": "fail", "arithmetic": "differs"}[seen.verdict]
    yield f"<header><p class='kind'>llama_ckpt · {escape(seen.title)}</p>"
    yield f"<h1><span class='badge {word}'>{word.upper()}</span> {escape(seen.sentence)}</h1>"
    yield "<dl class='facts'>"
    yield from (f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in seen.facts)
    yield "</dl>"
    for why, command in seen.steps:
        yield f"<p class='next'><b>Next:</b> {escape(why)}"
        yield f"<code>{escape(command)}</code></p>" if command else "</p>"
    words = "".join(f"<dt>{word}</dt><dd>{_marked(meaning)}</dd>" for word, meaning in WORDS.items())
    yield _folded("What the words mean", f"<dl class='words'>{words}</dl>")
    yield "</header>\n"


def _marked(text: str) -> str:
    """Names between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def _findings(seen: View) -> Iterator[str]:
    title = "Failing checkpoints" if seen.checkpoints else "The dump itself"
    rows = (
        f"<li><b>{escape(kind)}</b> {escape(message)}<small>{escape(hint)}</small></li>"
        for kind, message, hint in seen.findings
    )
    inner = "".join(rows)
    yield from _section(title, "", [f"<ul class='findings'>{inner}</ul>"] if inner else [])


def _explained(seen: View) -> Iterator[str]:
    cards = [_card(found) for found in seen.explained]
    yield from _section("What it looks like", "", cards)


def _card(found: Mapping[str, Any]) -> str:
    """One diagnosis: named bugs, what the residual looks like, the smallest limit."""
    size = f"<small>error {_number(found['err'])}</small>"
    lines = [f"<h3><code>{escape(found['point'])}</code> {size}</h3><ul>"]
    for bug in found["named"][:4]:
        left = _number(bug["remaining_error"])
        mark = "explains it" if bug["explained"] else "a part of the truth: something else as well"
        if not bug["explained"] and bug.get("beyond") is not None:
            mark = f"explains all but {100 * bug['beyond']:.2g}% of the elements"
        lines.append(
            f"<li><b>{escape(bug['sentence'])}</b> <small>{mark}; remaining error {left}</small></li>"
        )
    for group in found["indistinguishable"][:2]:
        lines.append(f"<li>not to be told apart from this tensor: {escape(', '.join(group))}</li>")
    lines += [_operator(one) for one in found.get("identified", ())[:2]]
    if found.get("facts"):
        lines.append(f"<li>{escape(found['facts'])}</li>")
    for one in found["structure"][:3]:
        left = _number(one["remaining_error"])
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
    more = [one["certainty"], f"usually {one['code']}" if one["code"] else ""]
    said = escape("; ".join(part for part in more if part))
    alike = "".join(f"; or, alike here: {escape(other)}" for other in one["alike"])
    drawn = "".join(pictures(one["parameters"]))
    return f"<li><b>{escape(one['sentence'])}</b>{alike} <small>{said}</small>{drawn}</li>"


NOUNS = {
    "kv_head": "KV head",
    "head_dim": "feature",
    "width": "feature",
    "q_width": "feature",
    "ffn": "feature",
}


def _first(seen: View) -> Iterator[str]:
    """Where in the first wrong tensor its error lies."""
    if seen.first is None:
        return
    figures = []
    for one in seen.first["of"]:
        down, across = (NOUNS.get(one[axis], one[axis]) for axis in ("rows", "columns"))
        step = one["step"]
        rows = []
        for number, ratios in enumerate(one["ratios"]):
            named = _token(seen, number) if down == "token" else str(number)
            cells = [(ratio, f"{down} {number}, {across} {c * step}") for c, ratio in enumerate(ratios)]
            rows.append((named, cells))
        name = f"{down}s by {across}s" + (f", {step} a column" if step > 1 else "")
        chart = charts.heat_map(rows, f"error of the first wrong tensor, {name}", across=across)
        figures.append(f"<figure><figcaption>{escape(name)}</figcaption>{chart}</figure>")
    text = f"Where in <code>{escape(seen.first['name'])}</code> the error lies, over what is allowed to it."
    yield from _section("In the first wrong tensor", text, [f"<div class='pair'>{''.join(figures)}</div>"])


def _token(seen: View, number: int) -> str:
    """A token of the prompt: its place, and its text or its number."""
    if number < len(seen.token_texts):
        text = seen.token_texts[number].replace("\n", "\u23ce")
        return f"{number} {text[:8]}"
    return f"{number}: {seen.token_ids[number]}" if number < len(seen.token_ids) else f"token {number}"


def _ladder(seen: View) -> Iterator[str]:
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
    yield from _section("The ladder", "", [_table(heads, rows)] if rows else [])


def _growth(seen: View) -> Iterator[str]:
    drawn = [line for line in seen.curves if any(line.values)]
    chart = charts.curves(drawn, "error by block")
    grown = [value for value in seen.amplification if value]
    text = f"Your error at <code>{escape(seen.curve_point)}</code>, block by block."
    if seen.amplification:
        text += " <i>Inherited</i> is what is left of an error that came in with the block's input."
    if grown:
        mean = math.exp(sum(math.log(value) for value in grown) / len(grown))
        worst = max(range(len(seen.amplification)), key=lambda block: seen.amplification[block] or 0.0)
        text += f" A block hands on {mean:.2f} times the error it gets, on average; block {worst} most,"
        text += f" {seen.amplification[worst]:.2f} times."
    names = " ".join(
        f"<span class='key'><i class='swatch {line.name}'></i>{line.name}</span>" for line in drawn
    )
    figure = f"<figure class='wide'><figcaption>{names}</figcaption>{chart}</figure>" if chart else ""
    yield from _section("Growth of the error", text, [figure] if figure else [])


def _maps(seen: View) -> Iterator[str]:
    """Layer x point, for the own error and for the total one."""
    figures = []
    for kind, title in (("own", "Your own error"), ("total", "Your total error")):
        chart = _point_map(seen, kind)
        if chart:
            figures.append(f"<figure><figcaption>{title}, over what is allowed</figcaption>{chart}</figure>")
    legend = "".join(
        f"<span class='key'><i class='swatch l{number}'></i>{text}</span>"
        for number, text in enumerate(charts.LEVELS)
    )
    legend += "<span class='key'><i class='swatch bad'></i>no figure: shape, NaN, missing</span>"
    inner = [f"<div class='pair'>{''.join(figures)}</div><p class='legend'>{legend}</p>"] if figures else []
    text = "Each tensor's error over what is allowed, the worst of the recordings; up to 1 passes."
    yield from _section("Layers and points", text, inner)


def _point_map(seen: View, kind: str) -> str:
    worst: dict[tuple[str, int], DrawnPoint] = {}
    for one in seen.judged:
        if one.kind != kind or one.ratio is None:
            continue
        key = (one.point, one.block or 0)
        if key not in worst or one.ratio > (worst[key].ratio or 0.0):
            worst[key] = one
    rows = []
    for point in seen.points():
        blocks = [block for name, block in worst if name == point]
        if not blocks:
            continue
        inside = any(one.point == point and one.block is not None for one in worst.values())
        columns = range(seen.n_blocks if inside else 1)
        rows.append((point, [_cell(worst.get((point, block))) for block in columns]))
    return charts.heat_map(rows, f"{kind} error over what is allowed, point by block")


def _cell(one: DrawnPoint | None) -> tuple[float | None, str]:
    if one is None:
        return None, ""
    found = one.verdict
    where = f" ({one.dump})" if one.dump else ""
    return one.ratio, f"{one.name}{where}: error {_number(found['err'])}, allowed {_number(found['limit'])}"


def _tokens_map(seen: View) -> Iterator[str]:
    """Token x layer, of the end of each block."""
    n = max((len(errs) for _, _, errs in seen.rows), default=0)
    limits = {
        (one.block, one.kind): one.verdict["limit"]
        for one in seen.judged
        if one.point == "out" and one.kind == "total"
    }
    by_block = {block: errs for _, block, errs in seen.rows}
    rows = []
    for token in range(min(n, 64)):
        cells = []
        for block in range(max(by_block, default=-1) + 1):
            errs, limit = by_block.get(block), limits.get((block, "total"))
            err = errs[token] if errs is not None and token < len(errs) else None
            ratio = err / limit if err is not None and limit else None
            cells.append((ratio, f"token {token}, block {block}: error {_number(err)}"))
        rows.append((_token(seen, token), cells))
    chart = charts.heat_map(rows, "your total error of each token at each block's end")
    text = "Your total error of each token at the end of each block, over what is allowed there."
    text += f" Recording: {escape(seen.rows_dump)}." if seen.rows_dump else ""
    yield from _section(
        "Tokens and layers", text, [f"<figure class='wide'>{chart}</figure>"] if chart else []
    )


def _histograms(seen: View) -> Iterator[str]:
    """A small histogram for each point, over all blocks."""
    limits: dict[tuple[str, str], float] = {}
    for one in seen.judged:
        if one.verdict["limit"] is not None:
            limits[one.point, one.kind] = one.verdict["limit"]
    order = seen.points()
    figures = []
    for kind, title in (("own", "own"), ("total", "total")):
        found = {one["point"]: one["counts"] for one in seen.histograms if one["kind"] == kind}
        for point in sorted(found, key=lambda p: order.index(p) if p in order else len(order)):
            if kind == "total" and point not in ("embd", "out", "output_norm", "logits"):
                continue
            chart = charts.histogram(seen.edges, found[point], limits.get((point, kind)), f"{point}, {title}")
            caption = f"<figcaption><code>{point}</code> {title}</figcaption>"
            figures.append(f"<figure>{caption}{chart}</figure>")
    text = "How many elements have which error, |x − o| / (|o| + rms of its row); bars by the logarithm"
    text += " of the count. The line is what is allowed to the whole tensor."
    drawn = f"<div class='small'>{''.join(figures)}</div>"
    yield from _section("Residuals", text, [_folded(f"{len(figures)} histograms", drawn)] if figures else [])


HEADS = ("point", "verdict", "your error", "reference's error", "allowed", "who is off", "made")


def _verdicts(seen: View) -> Iterator[str]:
    """What failed, or where somebody else is off, what is only inherited folded; then the next tokens."""
    listed = [one for one in seen.judged if one.failed or one.verdict["blame"] in ("reference", "tie")]
    listed.sort(key=lambda one: (not one.failed, one.kind != "own"))
    own = {(one.name, one.dump) for one in listed if one.kind == "own" and one.failed}
    shown: list[DrawnPoint] = []
    others: list[DrawnPoint] = []
    for one in listed:  # the total error of what is wrong by itself says no more
        again = one.kind == "total" and (one.name, one.dump) in own
        (others if again or one.made == "inherited" else shown).append(one)
    parts = list(_rows(shown))
    if others:
        inherited = sum(one.made == "inherited" for one in others)
        word = f"{len(others)} more, of which {inherited} inherit an error"
        parts.append(_folded(word, "".join(_rows(others))))
    if seen.tokens:
        heads = ("after row", "yours", "wanted", "exact", "margin", "noise", "who is off")
        wrong = sum(bool(token["blame"]) for token in seen.tokens)
        inner = _table(heads, _tokens(seen))
        parts.append("<h3>Likeliest next tokens</h3>")
        parts.append(_folded(f"{wrong} of {len(seen.tokens)} are others", inner))
    text = "What failed, and where the reference is off: each error is against what is exact."
    yield from _section("Who is off", text if listed or seen.tokens else "", parts)


def _rows(listed: Sequence[DrawnPoint]) -> Iterator[str]:
    if listed:
        yield _table(HEADS, [_verdict_row(one) for one in listed[:MOST_ROWS]])
    if len(listed) > MOST_ROWS:
        yield f"<p class='lead'>and {len(listed) - MOST_ROWS} more, in the JSON.</p>"


def _verdict_row(one: DrawnPoint) -> tuple[str, ...]:
    found = one.verdict
    name = f"{one.name} {one.kind}" + (f" {one.dump}" if one.dump else "")
    numbers = (_number(found[key]) for key in ("err", "err_reference", "limit"))
    return (name, found["verdict"], *numbers, WHO[found["blame"]], one.made or "—")


def _tokens(seen: View) -> list[tuple[str, ...]]:
    return [
        (
            str(token["row"]),
            str(token["got"]),
            str(token["wanted"]),
            "—" if token["exact"] is None else str(token["exact"]),
            _number(token["margin"]),
            _number(token["noise"]),
            WHO[token["blame"]],
        )
        for token in seen.tokens[:MOST_ROWS]
    ]


def _provenance(seen: View) -> Iterator[str]:
    rows = [f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in seen.provenance]
    rows.append(f"<div><dt>llama_ckpt</dt><dd>{__version__}</dd></div>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in seen.notes)
    parts = [f"<dl class='facts long'>{''.join(rows)}</dl>"] + ([f"<ul>{notes}</ul>"] if notes else [])
    yield from _section("Provenance", "", parts)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; on a phone each row becomes a card, its cells labelled by the headings."""
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(
        f"<tr class='{escape(row[1]) if row[1] in ('pass', 'fail', 'skipped', 'hidden') else ''}'>"
        + "".join(
            f"<td data-label='{escape(label)}'>{escape(cell)}</td>"
            for label, cell in zip(heads, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "—"
    return "0" if value == 0 else f"{value:.1e}"
