"""What was found of one rank of a run on several."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RankVerdict"]


@dataclass(frozen=True)
class RankVerdict:
    """What was found of one rank.

    Attributes:
        rank: its number, as it was given.
        path: its dump.
        stage: of the pipeline; blocks: the first and the last that it recorded, None without any.
        tensors: how many points it recorded.
        verdict: "fail" where the first wrong point is wrong on it.
        first_wrong: that point; None where it is right there.
    """

    rank: int
    path: str
    stage: int
    blocks: tuple[int, int] | None
    tensors: int
    verdict: str
    first_wrong: str | None
