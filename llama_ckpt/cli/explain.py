"""`llama-ckpt explain`: the page of a checkpoint, a point, a bug, or of declared arithmetic."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "explain"
EXAMPLE = "Example: llama-ckpt explain attn_probs"


def command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A checkpoint (RoPE), a point (attn_probs), a bug (norm-eps-other) or arithmetic; "
            "else the ladder.",
        ),
    ] = None,
) -> None:
    """Print the page of a checkpoint, a point or a bug.

    A checkpoint's has the formula, shapes, what it stands on, limits and what people get wrong. `arithmetic`
    is the language that a program says in what it rounds.
    """
    from llama_ckpt.report.pages import ladder_table
    from llama_ckpt.report.topics import explanation

    text = ladder_table() if name is None else explanation(name)
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        from llama_ckpt.cli.console import Console

        Console().print(Markdown(text))
    else:
        print(text, end="")
