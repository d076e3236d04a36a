"""What a rank did wrong, as a plain record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llama_ckpt.listing import listed

__all__ = ["RankFault", "ranks_of"]


@dataclass(frozen=True)
class RankFault:
    """A fault of a run on ranks that gives what a rank recorded.

    Attributes:
        kind: "another rank's shard", "cut", "key heads", "vocabulary", "reduction", "residual", "bias",
            "layers", "hand-over", "unequal".
        does: what is done, a clause that follows "rank 1" or "every rank".
        rank: which one.
        remaining: the relative error that is left.
    """

    kind: str
    does: str
    rank: int
    remaining: float


def ranks_of(numbers: Iterable[int], n: int) -> str:
    """ "rank 1", "ranks 0 and 2", "every rank" """
    chosen = sorted(set(numbers))
    if len(chosen) == n and n > 1:
        return "every rank"
    return f"rank{'s' * (len(chosen) > 1)} {listed(chosen)}"
