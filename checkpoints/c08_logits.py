"""Checkpoint 8, the logits: every block in turn, the last norm, and a score for every token.

    x = embed(token_ids);   x = block_i(x) for i = 0 .. n_layers - 1
    logits = rms_norm(x) Wout^T              Wout [vocab, width] -> logits [n, vocab]

With tied weights Wout is the embedding table. The whole model in one function; each token's row
predicts the token after it. Source: Touvron et al. 2023 (arXiv 2302.13971); llama.cpp,
`src/models/llama.cpp`.

Stands on the layers before it and on `linear`; with 32,000 rows the head is a good part of a small
model's time.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from checkpoints.c00_foundation import embed
from checkpoints.c01_rms_norm import rms_norm
from checkpoints.c07_block import block
from llama_ckpt.points import Case, Checkpoint, Given, block_input, block_point
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.kv_cache import KVCache
from llama_ckpt.weights.quants import linear
from llama_ckpt.weights.records import ModelWeights

__all__ = ["CHECKPOINT", "logits", "output_logits"]

Tap = Callable[[str, Tensor], object]


def logits(
    token_ids: Tensor,
    weights: ModelWeights,
    *,
    config: LlamaConfig,
    positions: Tensor,
    cache: KVCache | None = None,
    sequence_ids: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    tap: Tap | None = None,
) -> Tensor:
    """The whole model, a row of scores for each token.

    Args:
        token_ids: `[n]` int64.
        weights: every weight of the model.
        config: its shape.
        positions: `[n]` int64.
        cache: the tokens before these; they are added to it.
        sequence_ids: `[n]` int64, or None for one sequence.
        dtype: what everything is computed in.
        tap: gets "embd", "blk.N.<point>", "blk.N.out" and "output_norm".

    Returns:
        `[n, vocab]` of `dtype`.
    """
    if cache is not None:
        cache.reserve(positions, sequence_ids)
    x = embed(token_ids, weights.token_embd, dtype=dtype)
    if tap:
        tap("embd", x)
    for number, block_weights in enumerate(weights.blocks):
        layer = cache.layer(number) if cache is not None else None
        inner = block_tap(number, tap)
        x = block(
            x,
            block_weights,
            config=config,
            positions=positions,
            cache=layer,
            sequence_ids=sequence_ids,
            tap=inner,
        )
        if inner:
            inner("out", x)
    return output_logits(x, weights, config=config, tap=tap)


def block_tap(number: int, tap: Tap | None) -> Tap | None:
    """The tap of one block, which puts the block's number before each point."""
    return tap and (lambda point, tensor: tap(block_point(number, point), tensor))


def output_logits(x: Tensor, weights: ModelWeights, *, config: LlamaConfig, tap: Tap | None = None) -> Tensor:
    """The last norm and the output head: `[n, width]` -> `[n, vocab]`; taps "output_norm"."""
    x = rms_norm(x, weights.output_norm, eps=config.rms_norm_eps)
    if tap:
        tap("output_norm", x)
    return linear(x, weights.output)


def cases(given: Given) -> Iterator[Case]:
    """Every block on the recorded output of the one before, then the head on the last one's."""
    for number in range(given.config.n_layers):
        arguments = {
            "x": given[block_input(number)],
            "weights": given.weights.blocks[number],
            "config": given.config,
            "positions": given.positions,
        }
        yield Case("block", arguments, (block_point(number, "out"),))
    x = given[block_point(given.config.n_layers - 1, "out")]
    arguments = {"x": x, "weights": given.weights, "config": given.config}
    yield Case("output_logits", arguments, ("logits",), {"output_norm": "output_norm"})


CHECKPOINT = Checkpoint(
    id="8",
    title="logits: every block and the head",
    function=logits,
    stands_on=("0", "1", "7"),
    points=("out", "output_norm", "logits"),
    max_abs=1e-3,
    cases=cases,
    torch_function="the layers before it, and torch.nn.functional.linear for the head",
    mistakes=(
        "The final norm is skipped.",
        "The head is tied to the embedding where the file has its own, or the reverse.",
        "The last layers are skipped, or a layer's weights are used twice.",
        "Layers read each other's cache.",
        "The residual stream overflows in float16.",
    ),
)
