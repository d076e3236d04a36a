"""Rows of the logits or of the embedding that are another's, and the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

from llama_ckpt.identify.record import Asked, Guess

__all__ = ["logits_guesses"]


def logits_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where embd or the logits are the first wrong tensor."""
    yield from ()
