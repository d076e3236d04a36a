"""Checkpoint 11, softmax: the probabilities that the next token is drawn with.

    keep: top_k best; then the best whose probabilities reach top_p; then p >= min_p * p_best
    p = softmax(logits / temperature) over what is kept, 0 elsewhere     logits [..., vocab]

llama.cpp truncates before it scales: top-k, top-p and min-p look at the probabilities without the
temperature. A temperature below 1e-6 means argmax. Source: llama.cpp, `src/llama-sampler.cpp`; top-p:
Holtzman et al. 2020 (arXiv 1904.09751); min-p: Nguyen et al. 2024 (arXiv 2407.01082).

Stands on `torch.softmax` and a stable `torch.sort` (of equal logits the lower id comes first).

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llama_ckpt.points import Case, Checkpoint, Given
from llama_ckpt.weights.double import double

__all__ = ["CHECKPOINT", "softmax"]


def softmax(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    tap: Callable[[str, Tensor], object] | None = None,
) -> Tensor:
    """The probabilities after llama.cpp's sampler chain.

    Args:
        logits: `[..., vocab]`; computed in float32, or float64 when given in it.
        temperature: above 0; below 1e-6 the largest logit gets everything.
        top_k: how many tokens may stay; 0 for all.
        top_p: the tokens that reach this probability stay, the one that reaches it included; 1 for all.
        min_p: what has this share of the best one's probability stays; 0 for all.
        tap: unused; there are no inner points.

    Returns:
        `[..., vocab]`, float32 or float64; each row sums to one.
    """
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    ranked, order = x.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(x.shape[-1], device=x.device)
    kept = rank < (top_k if top_k > 0 else x.shape[-1])
    if top_p < 1:
        probs = double(ranked.masked_fill(~kept, float("-inf"))).softmax(-1)
        before = probs.cumsum(-1) - probs  # what the better ones reach together
        kept = kept & (before < top_p).to(x.device)
    if min_p > 0:
        kept = kept & (ranked >= ranked[..., :1] + math.log(min_p))
    if temperature < 1e-6:
        kept, temperature = rank < 1, 1.0
    kept = kept | (rank < 1)  # one token always stays
    scaled = (ranked / temperature).masked_fill(~kept, float("-inf"))
    probs = double(scaled).softmax(-1)  # a float32 sum over 32,000 tokens is off by 1e-5
    return torch.empty_like(x).scatter(-1, order, probs.to(x.dtype).to(x.device))


def cases(given: Given) -> Iterator[Case]:
    """The last row under each of the recorded sampler settings."""
    for number, options in enumerate(given.sampling):
        yield Case("softmax", {"logits": given["last_logits"], **options}, (f"sampling.{number}",))


CHECKPOINT = Checkpoint(
    id="11",
    title="softmax: probabilities, truncated",
    function=softmax,
    stands_on=("9",),
    points=("sampling",),
    max_abs=1e-6,
    cases=cases,
    torch_function="torch.softmax and a stable torch.sort: overflow-safe, ties by id",
    mistakes=(
        "The temperature is multiplied instead of divided by.",
        "The temperature is applied before the truncation: other tokens are kept.",
        "top-p drops the token that reaches the limit, so that top_p 0.9 keeps less than 0.9.",
        "min-p compares with 1 instead of with the best token's probability.",
        "The kept probabilities are not normalized again.",
        "exp overflows because the maximum is not taken out first.",
    ),
    error_from={
        "sampling": "exp of a logit divided by the temperature, over a sum; float32 in every precision"
    },
)
