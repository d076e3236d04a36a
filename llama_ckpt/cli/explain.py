"""`llama-ckpt explain`: a checkpoint's page."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "explain"
EXAMPLE = "Example: llama-ckpt explain 1B"


def command(
    id: Annotated[  # noqa: A002 - the word that the help shows
        str | None, typer.Argument(metavar="ID", help="A checkpoint, such as 1B; the ladder without it.")
    ] = None,
) -> None:
    """Print the page of a checkpoint.

    It has the formula, shapes, what it stands on, limits and what people get wrong.
    """
    from llama_ckpt.report.pages import ladder_table, page

    text = ladder_table() if id is None else page(id)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text, end="")
