"""Checkpoint 10, argmax: the greedy token.

    token = min { i : logits[i] = max(logits) }        logits [..., vocab] -> token [...]

Of equal logits the lowest id wins, as in llama.cpp, which moves on only to something greater; so a NaN
is never moved to. Source: llama.cpp, `llama_sampler_greedy_apply` in `src/llama-sampler.cpp`.

Stands on `torch.max` for the value and a minimum over the ids that have it: `torch.argmax` promises
nothing about ties.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llama_ckpt.points import Case, Checkpoint, Given

__all__ = ["CHECKPOINT", "argmax"]


def argmax(logits: Tensor, tap: Callable[[str, Tensor], object] | None = None) -> Tensor:
    """The id of the largest logit, of equal ones the lowest.

    Args:
        logits: `[..., vocab]`. A NaN is passed over; where id 0 is NaN the answer is 0, as in llama.cpp.
        tap: unused; there are no inner points.

    Returns:
        `[...]` int64.
    """
    ids = torch.arange(logits.shape[-1], device=logits.device)
    numbers = logits.masked_fill(logits.isnan(), float("-inf"))
    largest = numbers.amax(dim=-1, keepdim=True)
    best = torch.where(numbers == largest, ids, logits.shape[-1]).amin(dim=-1)
    return best.masked_fill(logits[..., 0].isnan(), 0)


def cases(given: Given) -> Iterator[Case]:
    """Every row of the recorded logits."""
    yield Case("argmax", {"logits": given["logits"]}, ("greedy_tokens",))


CHECKPOINT = Checkpoint(
    id="10",
    title="argmax",
    function=argmax,
    stands_on=("9",),
    points=("greedy_tokens",),
    max_abs=0.0,
    cases=cases,
    torch_function="torch.amax and a minimum over ids: torch.argmax leaves ties open",
    mistakes=(
        "Of equal logits the highest id is taken, or whichever thread is first.",
        "NaN counts as the largest, so that a broken model picks a fixed token quietly.",
        "The logits are rounded to float16 first, which makes ties that were none.",
        "The vocabulary's padding takes part.",
    ),
)
