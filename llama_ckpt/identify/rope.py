"""By which angle each pair of each row was turned, and which positions and frequencies that is."""

from __future__ import annotations

from collections.abc import Iterator

from llama_ckpt.identify.record import Asked, Guess

__all__ = ["rope_guesses"]


def rope_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where q_rope or k_rope is the first wrong tensor."""
    yield from ()
