"""`llama-ckpt capture`: record llama.cpp on a prompt, as a reference dump."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama_ckpt.capture import capture
from llama_ckpt.capture.plan import plan_of
from llama_ckpt.capture.run_file import capture_run
from llama_ckpt.cli.options import ModelFile, integers, model_path
from llama_ckpt.cli.progress import waiting
from llama_ckpt.cores import usable_cpus
from llama_ckpt.errors import OptionError
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.tokens.tokenizer import Tokenizer

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "capture"
EXAMPLE = "Example: llama-ckpt capture --model mine.gguf --prompt Hello --out dumps"


def command(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the dumps; one more is added to those there.")
    ],
    model: ModelFile = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="The text to record.")] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="IDS", help="Token ids instead, with commas: 1,15043.")
    ] = None,
    positions_from: Annotated[
        int, typer.Option(metavar="P", help="Position of the first token, in an empty cache.")
    ] = 0,
    max_tokens: Annotated[
        int, typer.Option(metavar="N", help="Length of the greedy continuation; 0 for none.")
    ] = 16,
    forced: Annotated[
        int, typer.Option(metavar="N", help="Record one pass over the prompt and N greedy tokens after it.")
    ] = 0,
    name: Annotated[str | None, typer.Option(help="Name of the dump, else made from the prompt.")] = None,
    blocks: Annotated[
        str | None, typer.Option(metavar="NS", help="Blocks to record in full, with commas; all without it.")
    ] = None,
    last_logits_only: Annotated[
        bool, typer.Option("--last-logits-only", help="Keep the last token's logits alone, for long prompts.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="Threads of llama.cpp, which change no result; all cores without it.")
    ] = None,
    cache: Annotated[str, typer.Option(metavar="TYPE", help="Of keys and values: f32, f16, bf16.")] = "f32",
    flash_attention: Annotated[
        bool, typer.Option("--flash-attention", help="One fused kernel, as llama.cpp by itself.")
    ] = False,
    repacked: Annotated[
        bool, typer.Option("--repacked", help="Weights laid out for the machine, as llama.cpp by itself.")
    ] = False,
    chunks: Annotated[
        str | None, typer.Option(metavar="NS", help="A run of several calls: tokens of each, 512,512.")
    ] = None,
    decode: Annotated[
        int, typer.Option(metavar="N", help="A run: then N greedy tokens, each a call that is recorded.")
    ] = 0,
    rollback: Annotated[
        str | None, typer.Option(metavar="N,IDS", help="A run: the last N tokens removed, then other ones.")
    ] = None,
    share: Annotated[
        str | None, typer.Option(metavar="N,IDS", help="A run: N tokens copied to another sequence.")
    ] = None,
    beside: Annotated[
        list[str] | None, typer.Option(metavar="IDS", help="A run: another sequence in the same batch.")
    ] = None,
    gpu_layers: Annotated[int, typer.Option(help="Blocks on the GPU, for a llama.cpp built for one.")] = 0,
) -> None:
    """Record llama.cpp's tensors on a prompt.

    And how it goes on. Needs the extra `reference`. llama.cpp runs in a process of its own. A run of several
    calls is a dump by itself, which `compare` judges like any program's.
    """
    if chunks or decode or rollback or share or beside:
        file, ids = model_path(model), None if tokens is None else integers("--tokens", tokens)
        cut, copied = _numbers("--rollback", rollback), _numbers("--share", share)
        plan = plan_of(
            [_ids(file, prompt, ids), *(integers("--beside", one) for one in beside or ())],
            chunks=_numbers("--chunks", chunks),
            decode=decode,
            rollback=cut[0] if cut else 0,
            then=cut[1:],
            share=copied[0] if copied else 0,
            continued=copied[1:],
        )
        chosen = None if blocks is None else integers("--blocks", blocks)
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{name or 'run'}.safetensors"
        with waiting("recording llama.cpp"):
            capture_run(file, plan, out=path, blocks=chosen, n_threads=threads or usable_cpus())
        print(f"{path}: a run; llama-ckpt compare {path} judges it")
        return
    with waiting("recording llama.cpp"):
        entry = capture(
            model_path(model),
            out=out,
            prompt=prompt,
            tokens=None if tokens is None else integers("--tokens", tokens),
            positions_from=positions_from,
            max_tokens=max_tokens,
            forced=forced,
            name=name,
            blocks=None if blocks is None else integers("--blocks", blocks),
            last_logits_only=last_logits_only,
            n_threads=threads or usable_cpus(),
            n_gpu_layers=gpu_layers,
            cache=cache,
            flash_attention=flash_attention,
            repacked=repacked,
        )
    print(f"{out / entry.file}: {len(entry.token_ids)} tokens, {len(entry.blocks)} blocks in full")


def _numbers(option: str, text: str | None) -> list[int]:
    return [] if text is None else integers(option, text)


def _ids(model: Path, prompt: str | None, tokens: list[int] | None) -> list[int]:
    """The tokens of a run's prompt."""
    if (prompt is None) == (tokens is None):
        got = "neither" if tokens is None else "both"
        raise OptionError("what to record", got=got, wanted="a prompt or tokens")
    return tokens if tokens is not None else Tokenizer.from_gguf(open_gguf(model)).encode(prompt or "")
