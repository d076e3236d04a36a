"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from llama_ckpt.errors import OptionError
from reference_dumps import embedded_model

__all__ = ["Device", "Dtype", "ModelFile", "Precision", "file_of", "integers", "model_path"]

ModelFile = Annotated[
    Path | None,
    typer.Option(
        "--model", metavar="M.gguf", help="A GGUF file or Hugging Face folder; else the embedded model."
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    typer.Option("--device", help="auto takes CUDA where there is one; mps is Apple's GPU, untested."),
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"], typer.Option("--dtype", help="What is computed in.")
]

Precision = Annotated[
    Literal["fast", "high"],
    typer.Option("--precision", help="The engine's; high: wider cache and activations."),
]


def model_path(model: Path | None) -> Path:
    """The model that was asked for, or the embedded one; a folder as the file of the same model."""
    return embedded_model() if model is None else file_of(model)


def file_of(model: Path) -> Path:
    """A model's GGUF file; of a folder, one for as long as this process lives, and that is said."""
    if not model.is_dir():
        return model
    from llama_ckpt.hugging_face.folder import model_file  # loads what no file needs

    file = model_file(model)
    print(f"{model}: read as the GGUF file of the same model, {file}", file=sys.stderr)
    return file


def integers(option: str, text: str) -> list[int]:
    """The whole numbers of an option such as `--tokens 1,15043`. Raises OptionError for anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise OptionError(option, got=repr(text), wanted="whole numbers with commas, 1,15043") from None
