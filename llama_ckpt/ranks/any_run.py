"""`lc.compare`: one dump, or the dumps of all ranks of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.errors import OptionError
from llama_ckpt.ranks.compare import compare_ranks
from llama_ckpt.ranks.plan import Plan

__all__ = ["compare"]


def compare(
    theirs: str | Path | None = None,
    *,
    ranks: Sequence[str | Path] | Mapping[int, str | Path] | None = None,
    plan: str | Path | Plan | None = None,
    **options: Any,
) -> Comparison:
    """Judge what a program wrote: one dump, or one of each rank.

    Args:
        theirs: a dump; `compare_dump` is the same.
        ranks: instead, the dump of each rank, in order or by its number; `compare_ranks` is the same.
        plan: how points are cut over ranks; None: as Megatron-LM cuts them.
        options: of `compare_dump`: reference, model, names, dump, dtype, arithmetic, partial, progress.

    Raises:
        LlamaCkptError: both or none are given; a plan without ranks; and as `compare_dump`.
    """
    if (theirs is None) == (ranks is None):
        raise OptionError(
            "compare", got="both" if ranks else "nothing", wanted="a dump, or the dumps of ranks"
        )
    if ranks is not None:
        return compare_ranks(ranks, plan=plan, **options)
    if plan is not None:
        raise OptionError("plan", got=str(plan), wanted="ranks=[...], the dumps that it is of")
    assert theirs is not None
    return compare_dump(theirs, **options)
