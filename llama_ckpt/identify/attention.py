"""Which keys each row saw, with which scale, from which head, and over what the sum was made."""

from __future__ import annotations

from collections.abc import Iterator

from llama_ckpt.identify.record import Asked, Guess

__all__ = ["attention_guesses"]


def attention_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where scores, probabilities or context are the first wrong tensor."""
    yield from ()
