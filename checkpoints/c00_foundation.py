"""Checkpoint 0, the foundation: from text to token ids to the first vectors.

    x = W_embd[token_ids]                    token_ids [n], W_embd [vocab, width] -> x [n, width]

The ground that every other checkpoint stands on: the same tokens as llama.cpp (BOS first), and for
each the same row of the embedding table, bit for bit. Source: Touvron et al. 2023 (arXiv 2302.13971);
llama.cpp, `build_inp_embd` in `src/llama-graph.cpp`.

Stands on `torch.nn.functional.embedding`: a row lookup has nothing to approximate. Of a packed table
only the rows that are asked for are dequantized.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llama_ckpt.points import Case, Checkpoint, Given
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.weights.quants import Weight, embedding_rows

__all__ = ["CHECKPOINT", "embed"]


def embed(
    token_ids: Tensor,
    weight: Weight,
    *,
    dtype: torch.dtype | None = None,
    tap: Callable[[str, Tensor], object] | None = None,
) -> Tensor:
    """Look up the vectors of `token_ids`.

    Args:
        token_ids: `[n]` int64.
        weight: `[vocab, width]`, a tensor or packed.
        dtype: of the result; None keeps a tensor's own, and gives float32 for a packed weight.
        tap: unused; there are no inner points.

    Returns:
        `[n, width]`
    """
    if dtype is None:
        dtype = weight.dtype if isinstance(weight, Tensor) else torch.float32
    return embedding_rows(token_ids, weight, dtype)


def tokenize(tokenizer: Tokenizer, text: str) -> list[int]:
    """The token ids of a prompt, BOS as the file says."""
    return tokenizer.encode(text)


def cases(given: Given) -> Iterator[Case]:
    """The prompt's tokens, where the vocabulary is one that is read here, and one lookup of them."""
    if given.prompt is not None and given.tokenizer.unsupported is None:
        yield Case("tokenize", {"tokenizer": given.tokenizer, "text": given.prompt}, ("token_ids",))
    arguments = {"token_ids": given.token_ids, "weight": given.weights.token_embd, **given.dtype_option}
    yield Case("embed", arguments, ("embd",))


CHECKPOINT = Checkpoint(
    id="0",
    title="foundation: tokens and embedding",
    function=embed,
    stands_on=(),
    points=("token_ids", "embd"),
    max_abs=0.0,
    cases=cases,
    torch_function="torch.nn.functional.embedding: a row lookup is exact in every dtype",
    mistakes=(
        "BOS is missing, or there twice: every later position is off by one.",
        "The leading space is missing, so that the first word becomes other tokens.",
        "The embedding is scaled by sqrt(width), as in Gemma; Llama does not.",
        "A quantized table is read with the block format of a neighbouring type.",
    ),
)
