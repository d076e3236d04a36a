"""`llama-ckpt example`: a file to copy into a program of your own. Loads no torch."""

from __future__ import annotations

import sys
from importlib.resources import files
from typing import Annotated

import typer

from llama_ckpt.errors import OptionError

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "example"
EXAMPLE = "Example: llama-ckpt example c++ > write_dump.hpp"

FILES = {"c++": "write_dump.hpp", "python": "write_dump.py"}
"""What is asked for to a file of `llama_ckpt.example_files`."""


def command(
    language: Annotated[str, typer.Argument(metavar="LANGUAGE", help="c++ or python.")],
) -> None:
    """Print a writer of dumps to copy into your program.

    One header of C++17, or ten lines of Python; neither needs anything else.
    """
    name = FILES.get(language.lower())
    if name is None:
        raise OptionError("example", got=language, wanted=" or ".join(FILES))
    sys.stdout.write((files("llama_ckpt.example_files") / name).read_text("utf-8"))
