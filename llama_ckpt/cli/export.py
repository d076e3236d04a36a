"""`llama-ckpt export`: the weights as safetensors, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llama_ckpt.cli.options import ModelFile, model_path
from llama_ckpt.cli.progress import ProgressBar
from llama_ckpt.making.export import export_weights

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "export"
EXAMPLE = "Example: llama-ckpt export --layout hf --out hf/model.safetensors"


def command(
    out: Annotated[Path, typer.Option(metavar="F.safetensors", help="The file to write.")],
    model: ModelFile = None,
    layout: Annotated[
        Literal["gguf", "hf", "meta"],
        typer.Option(
            help="hf: Hugging Face's names, Q and K in half-split order, and a config.json; "
            "meta: Meta's names, neighbouring pairs as in GGUF, and a params.json."
        ),
    ] = "gguf",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Of the written values.")
    ] = "float32",
) -> None:
    """Write a model's weights as safetensors.

    For programs that cannot read GGUF yet. Every matrix is [out, in], row-major.
    """
    with ProgressBar() as bar:
        for path in export_weights(model_path(model), out, layout=layout, dtype=dtype, progress=bar):
            bar.clear()
            print(f"{path}: {path.stat().st_size} bytes")
