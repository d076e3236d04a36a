"""`llama-ckpt make-seeded`: a model of any shape with weights from a seed, the same bytes everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama_ckpt.cli.progress import ProgressBar
from llama_ckpt.making.seeded_model import make_seeded

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "make-seeded"
EXAMPLE = "Example: llama-ckpt make-seeded --shape llama-2-7b --seed 1 --type Q4_0 --out seeded.gguf"


def command(
    out: Annotated[Path, typer.Option(metavar="F", help="The GGUF file to write.")],
    shape: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A known one, such as llama-2-7b; what is given beside it counts."),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Elements of the residual stream.")] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Key and value heads; else as many as heads.")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Size of a head; width / heads without it.")] = None,
    ffn: Annotated[int | None, typer.Option(help="Inner elements of the feed-forward network.")] = None,
    layers: Annotated[int | None, typer.Option(help="Blocks.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Its first entries; else all 32,000.")] = None,
    context: Annotated[int | None, typer.Option(help="Context length.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Of the RMS norms.")] = None,
    theta: Annotated[float | None, typer.Option(help="Base of RoPE's frequencies.")] = None,
    rope_scale: Annotated[float | None, typer.Option(help="Factor of linear RoPE scaling.")] = None,
    llama3_factor: Annotated[
        float | None, typer.Option(help="Factor of Llama 3's RoPE scaling: 8 in 3.1, 32 in 3.2.")
    ] = None,
    tied: Annotated[
        bool | None, typer.Option("--tied/--separate", help="Whether the output is the token embedding.")
    ] = None,
    experts: Annotated[int | None, typer.Option(help="Experts in each block; 0 without it.")] = None,
    experts_used: Annotated[int | None, typer.Option(help="How many of them compute a token.")] = None,
    omit: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A GGUF key to leave out; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other weights.")] = 1,
    kind: Annotated[str, typer.Option("--type", help="Of the weights: F32, F16, Q8_0, Q4_K_M, …")] = "F16",
    vocabulary: Annotated[
        Path | None,
        typer.Option(metavar="M.gguf", help="Take the vocabulary of another model; none: token ids."),
    ] = None,
) -> None:
    """Make a model of any shape from a seed.

    Its bytes are the same on every machine.
    """
    with ProgressBar() as bar:
        made = make_seeded(
            out,
            shape=shape,
            width=width,
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=ffn,
            n_layers=layers,
            vocab=vocab,
            context_length=context,
            rms_norm_eps=epsilon,
            rope_theta=theta,
            rope_scale=rope_scale,
            llama3_factor=llama3_factor,
            tied_output=tied,
            n_experts=experts,
            n_experts_used=experts_used,
            omit_keys=omit or None,
            seed=seed,
            type=kind,
            vocabulary=vocabulary,
            progress=lambda done, total: bar("writing", done, total),
        )
    print(f"{made.path}: {made.nbytes} bytes, sha256 {made.sha256}")
