"""What `explain` answers with: the page of a checkpoint, a point, a bug or of arithmetic."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING

from llama_ckpt.errors import OptionError
from llama_ckpt.points import ALL_POINTS, POINTS, split_name
from llama_ckpt.report.checkpoint_sources import CheckpointSource, checkpoint_sources
from llama_ckpt.report.pages import limits_table, markdown_table, page

if TYPE_CHECKING:
    from llama_ckpt.diagnose.bugs.record import Bug

__all__ = ["explanation"]

NEAREST = 3
"""So many names are suggested for one that is unknown."""


def explanation(word: str) -> str:
    """The page of what a word names, in Markdown.

    Capitals, spaces, "-" and "_" make no difference. A word that names both a checkpoint and a point,
    such as `logits`, gives the checkpoint's page, which shows the point too.

    Args:
        word: a checkpoint's id, title, function or module ("1b", "RoPE", "rope", "c01b_rope"); a point,
            with or without its block ("attn_probs", "blk.3.attn_probs"); a bug of the catalogue;
            "arithmetic", or one of its profiles ("llama.cpp-cpu").

    Raises:
        OptionError: nothing is called so; the message has the nearest names.
    """
    asked = _plain(word)
    for checkpoint in checkpoint_sources():
        if asked in map(_plain, _names(checkpoint)):
            return page(checkpoint)
    point = split_name(word.strip().lower())[1].split(".")[0]  # "sampling.2" is a point "sampling"
    for name in _points():
        if _plain(point) == _plain(name):
            return _text(_point(name))
    return _of_catalogues(word, point)


def _of_catalogues(word: str, point: str) -> str:
    """The page of arithmetic or of a bug: they load a good part of the program, which others need not."""
    from llama_ckpt.arithmetic.profiles import PROFILES
    from llama_ckpt.diagnose.bugs import catalogue
    from llama_ckpt.report.arithmetic_page import arithmetic_page, profile_page

    asked, bugs = _plain(word), catalogue()
    if asked == "arithmetic":
        return arithmetic_page()
    for name in PROFILES:
        if asked == _plain(name):
            return profile_page(name)
    for bug in bugs:
        if asked == _plain(bug.name):
            return _text(_bug(bug, bugs))
    others = [*(bug.name for bug in bugs), "arithmetic", *PROFILES]
    raise OptionError(
        "explain",
        got=word,
        wanted="one of " + ", ".join(one.id for one in checkpoint_sources()) + ", a point's name or a bug's",
        hint=_suggestion(point, others),
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _names(checkpoint: CheckpointSource) -> Iterator[str]:
    """All that a checkpoint may be called: "c00_foundation" is also "foundation"."""
    yield from (checkpoint.id, checkpoint.title, checkpoint.module, *checkpoint.functions)
    yield checkpoint.module.partition("_")[2]


def _points() -> Iterable[str]:
    """The points of a model, and those that only a checkpoint names, such as `token_ids`."""
    return dict.fromkeys([*POINTS, *(name for one in checkpoint_sources() for name in one.points)])


def _suggestion(word: str, others: Iterable[str]) -> str:
    known = [name for one in checkpoint_sources() for name in _names(one)]
    known += [*_points(), *others]
    shown = {name.lower(): name for name in known}
    near = [shown[one] for one in get_close_matches(word.lower(), shown, NEAREST)]
    if near:
        return f"the nearest names are {', '.join(near)}"
    return "`llama-ckpt explain` lists the checkpoints and their points"


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _judges(point: str) -> tuple[CheckpointSource, ...]:
    return tuple(one for one in checkpoint_sources() if point in one.points)


def _point(name: str) -> Iterator[str]:
    """The page of one point: where it is, who judges it, how far off it may be."""
    judges = _judges(name)
    yield f"# Point `{name}`"
    yield ""
    point = ALL_POINTS.get(name)
    if point is not None:
        row = (", ".join(point.axes), f"`{point.llama_cpp}`", f"`{point.op}`")
        yield from markdown_table(("axes", "llama.cpp's tensor", "made by"), [row])
        yield ""
        if point.causal:
            yield "Only keys not later than the query are judged."
            yield ""
    yield from (f"Judged by checkpoint {one.id}, {one.title} (`{one.function}`)." for one in judges)
    yield ""
    yield "## Limits"
    yield ""
    yield from limits_table([name])
    for one in judges:
        yield from _mistakes(one)


def _bug(bug: Bug, bugs: Iterable[Bug]) -> Iterator[str]:
    """The page of one bug: what the wrong program does, and where that is seen."""
    judge = next(one for one in checkpoint_sources() if one.id == bug.checkpoint)
    yield f"# Bug `{bug.name}`"
    yield ""
    yield f"{bug.sentence[0].upper()}{bug.sentence[1:]}."
    yield ""
    yield f"It changes `{bug.function}`. The first checkpoint that fails is {judge.id}, {judge.title}."
    yield ""
    yield "Points judged there: " + ", ".join(f"`{name}`" for name in judge.points) + "."
    others = [one.name for one in bugs if one.function == bug.function and one != bug]
    if others:
        yield ""
        yield f"Other bugs of `{bug.function}`: " + ", ".join(f"`{name}`" for name in others) + "."
    yield from _mistakes(judge)


def _mistakes(checkpoint: CheckpointSource) -> Iterator[str]:
    yield ""
    yield f"## What people get wrong in {checkpoint.title}"
    yield ""
    yield from (f"- {mistake}" for mistake in checkpoint.mistakes)
    yield ""
    yield f"The whole page: `llama-ckpt explain {checkpoint.id}`."
