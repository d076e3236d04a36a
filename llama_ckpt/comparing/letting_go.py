"""What leads to the context of a long prompt goes from memory as soon as it is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from numpy.typing import NDArray

from llama_ckpt.comparing.block_run import MATRICES
from llama_ckpt.comparing.block_spreads import OwnBlock
from llama_ckpt.comparing.comparison import ComparedPoint

__all__ = ["let_go_of_attention"]

Array: TypeAlias = NDArray[Any]


LARGE = 1 << 24
"""Elements; smaller ones stay."""


def let_go_of_attention(
    point: str, theirs: Mapping[str, Array], runs: Iterable[object], judged: Mapping[str, ComparedPoint]
) -> None:
    """Once all up to the context is right little reads it again, and the feed-forward's share is to come.

    Scores and probabilities of 2,048 tokens and 32 heads are 1 GB.

    Args:
        point: what was judged last; only the context counts.
        theirs: their tensors of a block by neutral name; scores and probabilities are taken out.
        runs: of the block; what is asked of them again is computed again.
        judged: the points so far.
    """
    if point != "attn_context" or any(one.verdict == "fail" for one in judged.values()):
        return
    blocks = [run for run in runs if isinstance(run, OwnBlock)]
    large = [one for one in MATRICES if one in theirs and theirs[one].size > LARGE]
    for held in (theirs, *(run.theirs for run in blocks)):
        if isinstance(held, dict) and "attn_context" in held:
            for one in large:
                held.pop(one, None)
    for run in blocks if large else ():
        run.forget_attention()
