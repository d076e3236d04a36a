"""What of a page is drawn: growth of the error, heat maps of points, tokens and the first wrong tensor."""

from __future__ import annotations

import math
from html import escape

from llama_ckpt.report import charts
from llama_ckpt.report.page_parts import Section, folded, number, section
from llama_ckpt.report.view import DrawnPoint, View

__all__ = ["first_tensor", "growth", "histograms", "legend", "maps", "token", "tokens_map"]

NOUNS = {
    "kv_head": "KV head",
    "head_dim": "feature",
    "width": "feature",
    "q_width": "feature",
    "ffn": "feature",
}


def first_tensor(seen: View) -> list[Section]:
    """Where in the first wrong tensor its error lies."""
    if seen.first is None:
        return []
    figures = []
    for one in seen.first["of"]:
        down, across = (NOUNS.get(one[axis], one[axis]) for axis in ("rows", "columns"))
        step = one["step"]
        rows = []
        for row, ratios in enumerate(one["ratios"]):
            named = token(seen, row) if down == "token" else str(row)
            cells = [(ratio, f"{down} {row}, {across} {c * step}") for c, ratio in enumerate(ratios)]
            rows.append((named, cells))
        name = f"{down}s by {across}s" + (f", {step} a column" if step > 1 else "")
        chart = charts.heat_map(rows, f"error of the first wrong tensor, {name}", across=across)
        figures.append(f"<figure><figcaption>{escape(name)}</figcaption>{chart}</figure>")
    text = f"Where in <code>{escape(seen.first['name'])}</code> the error lies, over what is allowed to it."
    return section("In the first wrong tensor", text, [f"<div class='pair'>{''.join(figures)}</div>"])


def token(seen: View, place: int) -> str:
    """A token of the prompt: its place, and its text or its number."""
    if place < len(seen.token_texts):
        text = seen.token_texts[place].replace("\n", "\u23ce")
        return f"{place} {text[:8]}"
    return f"{place}: {seen.token_ids[place]}" if place < len(seen.token_ids) else f"token {place}"


def growth(seen: View) -> list[Section]:
    """The error from block to block."""
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
    return section("Growth of the error", text, [figure] if figure else [])


def maps(seen: View) -> list[Section]:
    """Layer x point, for the own error and for the total one."""
    figures = []
    for kind, title in (("own", "Your own error"), ("total", "Your total error")):
        chart = _point_map(seen, kind)
        if chart:
            figures.append(f"<figure><figcaption>{title}, over what is allowed</figcaption>{chart}</figure>")
    inner = [f"<div class='pair'>{''.join(figures)}</div>{legend()}"] if figures else []
    text = "Each tensor's error over what is allowed, the worst of the recordings; up to 1 passes."
    return section("Layers and points", text, inner)


def legend() -> str:
    """What the colours of a heat map mean."""
    steps = "".join(
        f"<span class='key'><i class='swatch l{step}'></i>{text}</span>"
        for step, text in enumerate(charts.LEVELS)
    )
    none = "<span class='key'><i class='swatch bad'></i>no figure: shape, NaN, missing</span>"
    return f"<p class='legend'>{steps}{none}</p>"


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
    return one.ratio, f"{one.name}{where}: error {number(found['err'])}, allowed {number(found['limit'])}"


def tokens_map(seen: View) -> list[Section]:
    """Token x layer, of the end of each block."""
    n = max((len(errs) for _, _, errs in seen.rows), default=0)
    limits = {
        (one.block, one.kind): one.verdict["limit"]
        for one in seen.judged
        if one.point == "out" and one.kind == "total"
    }
    by_block = {block: errs for _, block, errs in seen.rows}
    rows = []
    for row in range(min(n, 64)):
        cells = []
        for block in range(max(by_block, default=-1) + 1):
            errs, limit = by_block.get(block), limits.get((block, "total"))
            err = errs[row] if errs is not None and row < len(errs) else None
            ratio = err / limit if err is not None and limit else None
            cells.append((ratio, f"token {row}, block {block}: error {number(err)}"))
        rows.append((token(seen, row), cells))
    chart = charts.heat_map(rows, "your total error of each token at each block's end")
    text = "Your total error of each token at the end of each block, over what is allowed there."
    text += f" Recording: {escape(seen.rows_dump)}." if seen.rows_dump else ""
    return section("Tokens and layers", text, [f"<figure class='wide'>{chart}</figure>"] if chart else [])


def histograms(seen: View) -> list[Section]:
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
    return section("Residuals", text, [folded(f"{len(figures)} histograms", drawn)] if figures else [])
