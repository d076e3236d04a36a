"""What the oracle leaves to others, in its own terms: the prompt's tokens, and the greedy continuation.

They stand apart so that `patched_oracle` can make them wrong like any function of the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.oracle.llama import argmax, last_logits, logits

__all__ = ["generate", "last_row", "tokenize"]


def tokenize(tokenizer: Any, text: str) -> NDArray[np.int64]:
    """The token ids of a prompt, `[n]`."""
    return np.asarray(tokenizer.encode(text), dtype=np.int64)


def generate(
    model: Any, prompt_or_token_ids: Sequence[int], *, max_tokens: int, first_position: int = 0
) -> NDArray[np.int64]:
    """The greedy continuation, `[max_tokens]` or fewer, each step over the whole text so far.

    `model` has `weights`, `config`, and `eog_ids`: with one of those, which is kept, the text ends.
    """
    history = list(prompt_or_token_ids)
    chosen: list[int] = []
    while len(chosen) < max_tokens:
        positions = first_position + np.arange(len(history))
        rows = logits(history, model.weights, config=model.config, positions=positions)
        chosen.append(int(argmax(last_logits(rows))))
        history.append(chosen[-1])
        if chosen[-1] in model.eog_ids:
            break
    return np.asarray(chosen, dtype=np.int64)


def last_row(
    token_ids: Sequence[int],
    weights: Any,
    *,
    config: Any,
    positions: Any,
    sequence_ids: Any = None,
    tap: Any = None,
) -> NDArray[np.float64]:
    """The logits after the last token of a whole run, `[1, vocab]`: all that many programs keep of them."""
    places = {"positions": positions, "sequence_ids": sequence_ids}
    rows = logits(token_ids, weights, config=config, **places, tap=tap)
    return np.asarray(last_logits(rows))[None]
