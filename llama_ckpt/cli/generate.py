"""`llama-ckpt generate`: continue a prompt and print the text as it comes."""

from __future__ import annotations

import os
import sys
from itertools import chain
from typing import Annotated, Literal

import typer

import llama_ckpt
from llama_ckpt.cli.options import Device, ModelFile, integers, model_path
from llama_ckpt.cli.progress import ProgressBar, megabytes
from llama_ckpt.errors import OptionError
from llama_ckpt.plain_text import spoken

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "generate"
EXAMPLE = 'Example: llama-ckpt generate "In the beginning" --max-tokens 20'


def command(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; - reads standard input.")
    ] = None,
    model: ModelFile = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="IDS", help="Token ids instead of a text, with commas: 1,15043.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest that sum to this; 1 keeps all.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Drop what is less likely than this share of the likeliest; 0 keeps all.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes what was said lately less likely.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; can be given several times.")
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option("--dtype", help="What the layers compute in, float32 without it; takes the layers."),
    ] = None,
    precision: Annotated[
        Literal["auto", "fast", "high", "layers"],
        typer.Option("--precision", help="The engine's, on CUDA; layers: the checkpoints' own layers."),
    ] = "auto",
) -> None:
    """Continue a prompt, printing as it goes."""
    from llama_ckpt.generation import computed_by

    given = _prompt(prompt, tokens)
    with ProgressBar() as bar:
        kind = dtype or "float32"
        loaded = llama_ckpt.load(model_path(model), device=device, dtype=kind, progress=megabytes(bar))
    if dtype is not None and precision == "auto":
        precision = "layers"  # the engine has precisions of its own, and no dtype
    pieces = llama_ckpt.generate(
        loaded,
        given,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=_stop_strings(stop),
        precision=precision,
    )
    first = next(pieces, "")  # what cannot be generated is one sentence and nothing else
    if loaded.tokenizer.unsupported is not None:
        print(f"token ids in brackets, not text: {loaded.tokenizer.unsupported}", file=sys.stderr)
    print(f"computed by {computed_by(loaded, precision)}", file=sys.stderr)
    watched = sys.stdout.isatty()  # a vocabulary may hold escape codes, which a terminal would obey
    for piece in chain((first,), pieces):
        print(spoken(piece) if watched else piece, end="", flush=True)
    print()


def _prompt(text: str | None, tokens: str | None) -> bytes | list[int]:
    if (text is None) == (tokens is None):
        got = "neither" if text is None else "both"
        raise OptionError("a prompt or --tokens", got=got, wanted="one of the two")
    if tokens is not None:
        return integers("--tokens", tokens)
    assert text is not None
    return sys.stdin.buffer.read() if text == "-" else os.fsencode(text)


def _stop_strings(stop: list[str] | None) -> tuple[str, ...]:
    if stop and "" in stop:
        raise OptionError("--stop", got="an empty text", wanted="one that can be met")
    return tuple(stop or ())
