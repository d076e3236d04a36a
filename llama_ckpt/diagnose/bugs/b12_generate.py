"""Checkpoint 12: the loop of prefill and decode, seen by what the model is given at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import Patch, PatchedOracle

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]
Seen: TypeAlias = tuple[Sequence[int], Sequence[int]]


def looped(sees: Callable[[list[int], list[int]], Seen]) -> Patch:
    """A loop whose model sees `sees(prompt, chosen)`: tokens, and their positions from the prompt's on."""

    def generate(
        right: PatchedOracle,
        model: Any,
        prompt_or_token_ids: Sequence[int],
        *,
        max_tokens: int,
        first_position: int = 0,
    ) -> Array:
        prompt, chosen = list(prompt_or_token_ids), list[int]()
        while len(chosen) < max_tokens and not (chosen and chosen[-1] in model.eog_ids):
            tokens, positions = sees(prompt, chosen)
            at = first_position + np.asarray(positions)
            rows = right.logits(tokens, model.weights, config=model.config, positions=at)
            chosen.append(int(right.argmax(right.last_logits(rows))))
        return np.asarray(chosen, dtype=np.int64)

    return generate


def position_restarts(prompt: list[int], chosen: list[int]) -> Seen:
    """Each new token at position 0: the mask then hides the prompt's others from it."""
    return [*prompt, *chosen], [*range(len(prompt)), *([0] * len(chosen))]


def position_stands_still(prompt: list[int], chosen: list[int]) -> Seen:
    n = len(prompt)
    return [*prompt, *chosen], [*range(n), *([n] * len(chosen))]


def position_skips(prompt: list[int], chosen: list[int]) -> Seen:
    """The first new token stands two after the prompt's last."""
    n = len(prompt)
    return [*prompt, *chosen], [*range(n), *range(n + 1, n + 1 + len(chosen))]


def last_prompt_token_twice(prompt: list[int], chosen: list[int]) -> Seen:
    """Prefilled, and then fed once more as the first step."""
    tokens = [*prompt, prompt[-1], *chosen]
    return tokens, range(len(tokens))


def prompt_forgotten(prompt: list[int], chosen: list[int]) -> Seen:
    """The cache is new for the decode steps."""
    n = len(prompt)
    return (chosen, range(n, n + len(chosen))) if chosen else (prompt, range(n))


def oldest_overwritten(prompt: list[int], chosen: list[int]) -> Seen:
    """A cache with room for the prompt alone, used as a ring."""
    tokens = [*prompt, *chosen]
    kept = slice(len(chosen), None)
    return tokens[kept], range(len(tokens))[kept]


def bug(name: str, sentence: str, sees: Callable[[list[int], list[int]], Seen]) -> Bug:
    return Bug(f"generate-{name}", sentence, "12", "generate", looped(sees))


BUGS = (
    bug("position-restarts", "every generated token has position 0", position_restarts),
    bug("position-stands-still", "all generated tokens have one position", position_stands_still),
    bug("position-skips", "one position is left out after the prompt", position_skips),
    bug("prompt-token-twice", "the prompt's last token is fed twice", last_prompt_token_twice),
    bug("prompt-forgotten", "generated tokens do not see the prompt", prompt_forgotten),
    bug("cache-as-ring", "each generated token overwrites the oldest in the cache", oldest_overwritten),
)
