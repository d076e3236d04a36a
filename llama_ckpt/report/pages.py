"""A checkpoint's page, in Markdown: what `explain` prints and `docs/` holds, made from the module's source.

Nothing here loads torch, so that a page of text appears at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from llama_ckpt.judging.limits import ErrorKind, is_measured, limit_for, unmeasured
from llama_ckpt.points import ALL_POINTS
from llama_ckpt.precisions import DTYPES
from llama_ckpt.report.checkpoint_sources import CheckpointSource, checkpoint_sources

__all__ = ["file_name", "ladder_table", "limits_table", "markdown_table", "page", "torch_functions"]

ERROR_KINDS: tuple[ErrorKind, ...] = ("own", "total")
TOKENS = {
    "continuation": "token by token; one that differs passes only where the oracle calls it a tie",
    "text": "character by character",
}
"""Points that are not tensors, and how they are compared."""


def page(checkpoint: CheckpointSource) -> str:
    """The page of one checkpoint."""
    parts = (_introduction, _function, _answers_for, _stands_on, _limits, _torch_function, _mistakes)
    return "\n\n".join("\n".join(part(checkpoint)) for part in parts) + "\n"


def file_name(checkpoint: CheckpointSource) -> str:
    """The page's file under `docs/checkpoints/`: the module's name."""
    return checkpoint.module + ".md"


def ladder_table(link: Callable[[CheckpointSource], str] = lambda checkpoint: checkpoint.title) -> str:
    """The ladder: each checkpoint's id, title, function, points and absolute limit.

    Args:
        link: how a title is written, so that a page can link to the others.
    """
    rows = (
        (one.id, link(one), f"`{one.function}`", _quoted(one.points), _absolute(one))
        for one in checkpoint_sources()
    )
    heads = ("id", "checkpoint", "function", "answers for", "largest difference from a float32 dump")
    return "\n".join(markdown_table(heads, rows)) + "\n"


def markdown_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A table's lines."""
    heads = list(heads)
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def torch_functions() -> str:
    """Which torch function each layer stands on, and why."""
    rows = ((one.id, f"`{one.function}`", one.torch_function) for one in checkpoint_sources())
    return "\n".join(markdown_table(("id", "layer", "stands on"), rows)) + "\n"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _absolute(checkpoint: CheckpointSource) -> str:
    return f"{checkpoint.max_abs:g}" if checkpoint.max_abs else "exact"


def _introduction(checkpoint: CheckpointSource) -> Iterator[str]:
    """The module's docstring: its first line is the heading, its last points to the mistakes below."""
    lines = checkpoint.doc.splitlines()
    yield f"# {lines[0].rstrip('.')}"
    yield from (line for line in lines[1:] if not line.startswith("What goes wrong here"))


def _function(checkpoint: CheckpointSource) -> Iterator[str]:
    yield "## The function"
    yield ""
    yield "```"
    yield f"{checkpoint.function}{checkpoint.signature}"
    yield ""
    yield checkpoint.function_doc
    yield "```"


def _answers_for(checkpoint: CheckpointSource) -> Iterator[str]:
    yield "## The points it answers for"
    yield ""
    yield from markdown_table(("point", "axes", "llama.cpp's tensor", "made by"), _points(checkpoint))


def _points(checkpoint: CheckpointSource) -> Iterator[tuple[str, ...]]:
    for name in checkpoint.points:
        point = ALL_POINTS.get(name)
        if point is None:
            yield f"`{name}`", "-", "-", "-"
        else:
            yield f"`{name}`", ", ".join(point.axes), f"`{point.llama_cpp}`", f"`{point.op}`"


def _stands_on(checkpoint: CheckpointSource) -> Iterator[str]:
    titles = {one.id: one.title for one in checkpoint_sources()}
    yield "## Stands on"
    yield ""
    if not checkpoint.stands_on:
        yield "No other checkpoint."
    for one in checkpoint.stands_on:
        yield f"- {one}, {titles[one]}: if it fails, look there first."


def _limits(checkpoint: CheckpointSource) -> Iterator[str]:
    yield "## Limits"
    yield ""
    if checkpoint.max_abs:
        yield f"Against a float32 dump: at most {checkpoint.max_abs:g} × max(1, max|reference|) anywhere."
    else:
        yield "Against a float32 dump: exact."
    yield ""
    yield from limits_table(checkpoint.points)


def limits_table(points: Iterable[str]) -> Iterator[str]:
    """The lines of a table of points: the error allowed in each precision, and why.

    Args:
        points: neutral names, without a block's number.
    """
    points = tuple(points)
    yield "Error ‖x − o‖ / ‖o‖ against the exact tensor o, own (made here, fed with recorded inputs) / total"
    yield "(the model runs by itself from its tokens):"
    yield ""
    yield from markdown_table(("point", *DTYPES), ((f"`{name}`", *_allowed(name)) for name in points))
    yield ""
    yield from (f"- `{name}`: {_reason(name)}." for name in points)


def _allowed(point: str) -> Iterator[str]:
    for dtype in DTYPES:
        yield " / ".join(_shown(point, dtype, error_kind) for error_kind in ERROR_KINDS)


def _shown(point: str, dtype: str, error_kind: ErrorKind) -> str:
    if point in TOKENS:
        return "exact"
    if not is_measured(point, dtype, error_kind):
        return "not measured"
    limit = limit_for(point, dtype, error_kind)
    return "exact" if limit.exact else f"{limit.err:.1e}"


def _reason(point: str) -> str:
    """Why the limit is what it is, for float32."""
    if point in TOKENS:
        return TOKENS[point]
    if not is_measured(point, "float32", "own"):
        return unmeasured(point, "float32", "own").reason
    said = {name: why for one in checkpoint_sources() for name, why in one.error_from.items()}
    return limit_for(point, "float32", "own", error_from=said.get(point, "")).reason


def _torch_function(checkpoint: CheckpointSource) -> Iterator[str]:
    yield "## The torch function"
    yield ""
    yield checkpoint.torch_function


def _mistakes(checkpoint: CheckpointSource) -> Iterator[str]:
    yield "## What people get wrong"
    yield ""
    yield from (f"- {mistake}" for mistake in checkpoint.mistakes)
