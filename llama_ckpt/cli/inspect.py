"""`llama-ckpt inspect`: what a GGUF file holds, without torch and without reading a weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llama_ckpt.cli.options import model_path
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.plain_text import one_line
from llama_ckpt.report.inspection import inspection, inspection_lines

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "inspect"
EXAMPLE = "Example: llama-ckpt inspect llama-2-7b.Q4_0.gguf"


def command(
    model: Annotated[
        Path | None, typer.Argument(metavar="M.gguf", help="A GGUF file; the embedded model without it.")
    ] = None,
    option: Annotated[Path | None, typer.Option("--model", metavar="M.gguf", help="The same.")] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Every tensor, with its shape and type.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what a GGUF file holds.

    That is its configuration, with what llama.cpp's defaults fill in marked, its vocabulary, its tensors by
    type, and whatever of these is not computed here, with the reason.
    """
    record = inspection(open_gguf(model_path(option if model is None else model)))
    if as_json:
        print(json.dumps(record, indent=1))
    else:
        print("\n".join(map(one_line, inspection_lines(record, every_tensor=tensors))))
