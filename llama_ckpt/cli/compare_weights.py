"""`llama-ckpt compare-weights`: two models' weights, tensor by tensor."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llama_ckpt.hugging_face.compare_weights import compare_weights, comparison_lines
from llama_ckpt.plain_text import one_line

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "compare-weights"
EXAMPLE = "Example: llama-ckpt compare-weights Llama-3.2-1B/ Llama-3.2-1B.Q4_K_M.gguf"


def command(
    first: Annotated[Path, typer.Argument(metavar="A", help="A GGUF file, or a folder of safetensors.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The same, of what should be the same model.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="Every tensor, the equal ones too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say which tensors of two models differ, and by how much.

    Rows of Q and K in the other program's order are named, and a difference that the coarser of the two types
    explains counts as rounding. Exits 1 where a tensor differs, is permuted, or is in one of the two alone.
    """
    found = list(compare_weights(first, second))
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        print("\n".join(map(one_line, comparison_lines(found, every_tensor=tensors))))
    if any(one.state not in ("equal", "rounded") for one in found):
        raise typer.Exit(1)
