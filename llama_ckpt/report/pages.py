"""A checkpoint's page, in Markdown: what `explain` prints and `docs/` holds, made from the module itself."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from llama_ckpt.judging.limits import DTYPES, ErrorKind, limit_for
from llama_ckpt.ladder.discovery import discover, normalize_ids
from llama_ckpt.points import POINTS, Checkpoint

__all__ = ["file_name", "ladder_table", "page", "torch_functions"]

ERROR_KINDS: tuple[ErrorKind, ...] = ("own", "total")
TOKENS = {
    "continuation": "token by token; one that differs passes only where the oracle calls it a tie",
    "text": "character by character",
}
"""Points that are not tensors, and how they are compared."""


def page(id: str) -> str:  # noqa: A002 - the ladder's own word
    """The page of one checkpoint.

    Args:
        id: the checkpoint's id, "1B" or "1b".

    Raises:
        OptionError: no such checkpoint.
    """
    (wanted,) = normalize_ids([id])
    checkpoint = next(one for one in discover() if one.id == wanted)
    parts = (_introduction, _function, _answers_for, _stands_on, _limits, _torch_function, _mistakes)
    return "\n\n".join("\n".join(part(checkpoint)) for part in parts) + "\n"


def file_name(checkpoint: Checkpoint) -> str:
    """The page's file under `docs/checkpoints/`: the module's name."""
    return checkpoint.function.__module__.rpartition(".")[2] + ".md"


def ladder_table(link: Callable[[Checkpoint], str] = lambda checkpoint: checkpoint.title) -> str:
    """The ladder: each checkpoint's id, title, function, points and absolute limit.

    Args:
        link: how a title is written, so that a page can link to the others.
    """
    rows = ((one.id, link(one), f"`{_name(one)}`", _quoted(one.points), _absolute(one)) for one in discover())
    heads = ("id", "checkpoint", "function", "answers for", "largest difference from a float32 dump")
    return "\n".join(_table(heads, rows)) + "\n"


def torch_functions() -> str:
    """Which torch function each layer stands on, and why."""
    rows = ((one.id, f"`{_name(one)}`", one.torch_function) for one in discover())
    return "\n".join(_table(("id", "layer", "stands on"), rows)) + "\n"


def _name(checkpoint: Checkpoint) -> str:
    return checkpoint.function.__name__


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _absolute(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.max_abs:g}" if checkpoint.max_abs else "exact"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    heads = list(heads)
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _introduction(checkpoint: Checkpoint) -> Iterator[str]:
    """The module's docstring: its first line is the heading, its last points to the mistakes below."""
    lines = inspect.cleandoc(_module(checkpoint).__doc__ or "").splitlines()
    yield f"# {lines[0].rstrip('.')}"
    yield from (line for line in lines[1:] if not line.startswith("What goes wrong here"))


def _module(checkpoint: Checkpoint) -> Any:
    return sys.modules[checkpoint.function.__module__]


def _function(checkpoint: Checkpoint) -> Iterator[str]:
    yield "## The function"
    yield ""
    yield "```"
    yield f"{_name(checkpoint)}{_signature(checkpoint.function)}"
    yield ""
    yield inspect.getdoc(checkpoint.function) or ""
    yield "```"


def _signature(function: Callable[..., Any]) -> str:
    """Names and defaults; what the types are stands in the docstring below."""
    parameters = inspect.signature(function).parameters.values()
    plain = [one.replace(annotation=one.empty) for one in parameters]
    return str(inspect.Signature(plain))


def _answers_for(checkpoint: Checkpoint) -> Iterator[str]:
    yield "## The points it answers for"
    yield ""
    yield from _table(("point", "axes", "llama.cpp's tensor", "made by"), _points(checkpoint))


def _points(checkpoint: Checkpoint) -> Iterator[tuple[str, ...]]:
    for name in checkpoint.points:
        point = POINTS.get(name)
        if point is None:
            yield f"`{name}`", "-", "-", "-"
        else:
            yield f"`{name}`", ", ".join(point.axes), f"`{point.llama_cpp}`", f"`{point.op}`"


def _stands_on(checkpoint: Checkpoint) -> Iterator[str]:
    titles = {one.id: one.title for one in discover()}
    yield "## Stands on"
    yield ""
    if not checkpoint.stands_on:
        yield "No other checkpoint."
    for one in checkpoint.stands_on:
        yield f"- {one}, {titles[one]}: if it fails, look there first."


def _limits(checkpoint: Checkpoint) -> Iterator[str]:
    yield "## Limits"
    yield ""
    if checkpoint.max_abs:
        yield f"Against a float32 dump: at most {checkpoint.max_abs:g} × max(1, max|reference|) anywhere."
    else:
        yield "Against a float32 dump: exact."
    yield "Against the oracle, ‖x − o‖ / ‖o‖, fed from the recording / fed by the layers before it:"
    yield ""
    yield from _table(("point", *DTYPES), _relative(checkpoint))
    yield ""
    yield from _reasons(checkpoint)


def _relative(checkpoint: Checkpoint) -> Iterator[tuple[str, ...]]:
    for name in checkpoint.points:
        yield (
            f"`{name}`",
            *(" / ".join(_shown(name, dtype, error_kind) for error_kind in ERROR_KINDS) for dtype in DTYPES),
        )


def _shown(point: str, dtype: str, error_kind: ErrorKind) -> str:
    limit = None if point in TOKENS else limit_for(point, dtype, error_kind)
    return "exact" if limit is None or limit.exact else f"{limit.err:.1e}"


def _reasons(checkpoint: Checkpoint) -> Iterator[str]:
    """Why each limit is what it is, for float32."""
    for name in checkpoint.points:
        reason = TOKENS.get(name) or limit_for(name, "float32", "own").reason
        yield f"- `{name}`: {reason}."


def _torch_function(checkpoint: Checkpoint) -> Iterator[str]:
    yield "## The torch function"
    yield ""
    yield checkpoint.torch_function


def _mistakes(checkpoint: Checkpoint) -> Iterator[str]:
    yield "## What people get wrong"
    yield ""
    yield from (f"- {mistake}" for mistake in checkpoint.mistakes)
