"""`lc.compare`: one dump, or the dumps of all ranks of a run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.in_memory import Dump, dump_file
from llama_ckpt.errors import OptionError
from llama_ckpt.ranks.compare import compare_ranks
from llama_ckpt.ranks.plan import Plan

__all__ = ["compare"]


def compare(
    theirs: Dump | None = None,
    *,
    token_ids: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    map: str | Path | None = None,
    ranks: Sequence[str | Path] | Mapping[int, str | Path] | None = None,
    plan: str | Path | Plan | None = None,
    **options: Any,
) -> Comparison:
    """Judge what a program wrote: one dump, or one of each rank.

    Args:
        theirs: a dump: a file, arrays by their points' names (a dict of numpy's, torch's, jax's, …), or what
            `record`, `recording` or a `Recorder` kept.
        token_ids, positions: of the run, where `theirs` are arrays or a `Recorder`.
        map: what your names, axes and layouts mean, as `--map`; `names` is the same.
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
    if map is not None:
        if options.get("names") is not None:
            raise OptionError("map", got="names as well", wanted="one of them: both are --map")
        options["names"] = map
    if ranks is not None:
        return compare_ranks(ranks, plan=plan, **options)
    if plan is not None:
        raise OptionError("plan", got=str(plan), wanted="ranks=[...], the dumps that it is of")
    assert theirs is not None
    with dump_file(theirs, {"token_ids": token_ids, "positions": positions}) as path:
        found = compare_dump(path, **options)
    return found if isinstance(theirs, str | os.PathLike) else _of_no_file(found, str(path))


def _of_no_file(found: Comparison, path: str) -> Comparison:
    """A comparison of what was in memory: no command can do it again, and no file has its name."""
    found.theirs = {**found.theirs, "path": "in memory"}
    quoted = shlex.quote(path)
    found.next = [
        replace(step, command="" if quoted in step.command else step.command) for step in found.next
    ]
    return found
