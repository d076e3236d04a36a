"""Comparing a run on several ranks: a dump a rank, put together, judged as one, and the rank named.

    compare_ranks(["rank0.safetensors", "rank1.safetensors"], plan="plan.txt").reason

Where ranks hold the same point and differ, the whole is judged as each of them sees it; the report is that
of the rank where something goes wrong first. numpy only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison, LintFinding
from llama_ckpt.comparing.nearest import DataFlow
from llama_ckpt.comparing.rank_verdict import RankVerdict
from llama_ckpt.diagnose.records import Diagnosis, NamedBug
from llama_ckpt.dumps.names_map import DumpMap, read_map
from llama_ckpt.dumps.sequences import sequences_of
from llama_ckpt.dumps.theirs import TheirDump, open_their_dump
from llama_ckpt.errors import DumpError, OptionError
from llama_ckpt.listing import listed
from llama_ckpt.points import split_name
from llama_ckpt.ranks.calls import in_one
from llama_ckpt.ranks.naming import Culprits
from llama_ckpt.ranks.place import RankDump, placed
from llama_ckpt.ranks.plan import Plan, read_plan
from llama_ckpt.ranks.record import ranks_of
from llama_ckpt.ranks.run import Run, open_run
from llama_ckpt.whole_files import temporary_folder

__all__ = ["compare_ranks"]

GRAVITY = {"pass": 0, "arithmetic": 1, "fail": 2}


def compare_ranks(
    ranks: Sequence[str | Path] | Mapping[int, str | Path],
    *,
    plan: str | Path | Plan | None = None,
    names: str | Path | None = None,
    **options: Any,
) -> Comparison:
    """Judge the dumps of all ranks of one run.

    Args:
        ranks: the dump of each rank, in order, or by its number.
        plan: how points are cut, see `plan`; None: as Megatron-LM cuts them.
        names: a map of names, axes and layouts, which every rank has.
        options: of `compare_dump`: reference, model, dump, dtype, arithmetic, partial, progress.

    Raises:
        LlamaCkptError: bad input: a file, an option, a plan, cuts that are not supported.
    """
    began = time.perf_counter()
    paths = _in_order(ranks)
    their_names = DumpMap() if names is None else read_map(names)
    chosen = plan if isinstance(plan, Plan) else Plan() if plan is None else read_plan(plan)
    of_model = {key: options.get(key) for key in ("reference", "model", "dump", "dtype")}
    with temporary_folder("ranks") as folder:
        dumps = [in_one(open_their_dump(path, their_names), folder) for path in paths]
        opened = placed(dumps, chosen)
        run = open_run(opened, chosen, **of_model)
        views = list(run.views())
        results: dict[int, Comparison] = {}
        for rank in views:
            path = folder / f"rank_{rank}.safetensors"
            if not run.write_whole(path, rank):
                raise DumpError("the ranks' dumps", got=_first_of(run), wanted="points that make a whole")
            results[rank] = compare_dump(path, **options)
            path.unlink()
            _as_typed(results[rank], str(path), paths, chosen, names)
        seen_from = _worst(results, run)
        result = results[seen_from]
        result.findings[:0] = run.findings(result.findings)
        result.notes[:0] = _notes(run, views)
        alone = _of_the_shown(result, dumps)
        asked = run if alone is None else open_run(placed(alone, chosen), chosen, **of_model)
        found = asked.culprits(result, seen_from)
    _say(result, found)
    result.theirs = {**result.theirs, "tensors": sum(len(rank.names) for rank in opened)}
    result.ranks = [_verdict_of(rank, paths[rank.rank], result, found) for rank in opened]
    result.seconds = time.perf_counter() - began
    return result


def _of_the_shown(result: Comparison, dumps: Sequence[TheirDump]) -> list[TheirDump] | None:
    """Of several sequences, or calls, what each rank has of the one that is shown, as one pass."""
    shown = next((place for place, one in enumerate(result.sequences) if one.shown), None)
    return None if shown is None else [sequences_of(dump)[shown] for dump in dumps]


def _in_order(ranks: Sequence[str | Path] | Mapping[int, str | Path]) -> list[Path]:
    given = dict(ranks) if isinstance(ranks, Mapping) else dict(enumerate(ranks))
    missing = [rank for rank in range(len(given)) if rank not in given]
    if len(given) < 2 or missing:
        got = ", ".join(map(str, sorted(given))) or "none"
        raise OptionError("ranks", got=got, wanted="two or more, numbered from 0, none left out")
    return [Path(given[rank]) for rank in range(len(given))]


def _first_of(run: Run) -> str:
    return next((one.message for one in run.pieces.findings.values()), "none")


def _worst(results: Mapping[int, Comparison], run: Run) -> int:
    """The rank that sees the first wrong point; of equals the first."""
    places = DataFlow(run.n_layers).places

    def rank_of(number: int) -> tuple[int, int, int]:
        result = results[number]
        first = result.first_wrong
        place = len(places) if first is None else places.get(first.name, 0)
        # An error that is made goes before one that is inherited, wherever that is.
        inherited = first is None or first.made == "inherited"
        return -GRAVITY[result.verdict], inherited, place

    return min(results, key=rank_of)


def _as_typed(
    result: Comparison, path: str, paths: Sequence[Path], plan: Plan, names: str | Path | None
) -> None:
    """Say the ranks' files in the place of the one that was made of them."""
    options = " ".join(f"--rank {rank}={own}" for rank, own in enumerate(paths))
    options += f" --plan {plan.path}" if plan.path else ""
    options += f" --map {names}" if names is not None else ""
    shown = listed([f"rank {rank}" for rank in range(len(paths))])

    def typed(text: str) -> str:
        return text.replace(path, options)

    result.next = [replace(one, why=typed(one.why), command=typed(one.command)) for one in result.next]
    result.notes = [typed(note) for note in result.notes]
    result.findings = [replace(one, message=one.message.replace(path, shown)) for one in result.findings]
    result.theirs = {**result.theirs, "path": f"{paths[0]} and {len(paths) - 1} more"}


def _notes(run: Run, views: Sequence[int]) -> list[str]:
    """How it was put together."""
    stages = {rank.stage for rank in run.pieces.ranks}
    n = len(run.pieces.ranks)
    how = f"cut as {run.pieces.plan.path} says" if run.pieces.plan.path else "cut as Megatron-LM cuts"
    said = [f"{n} ranks, {how}" + (f", {len(stages)} pipeline stages" if len(stages) > 1 else "")]
    if len(views) > 1:
        said.append(f"{ranks_of(views, n)} hold other numbers where they should be equal: each was judged")
    return [*said, *run.pieces.notes]


def _say(result: Comparison, found: Culprits | None) -> None:
    """Put what the ranks did before all else that is said of the first wrong point."""
    if found is None:
        return
    if not found.named:
        if len(found.errors) > 1:
            finding = LintFinding(
                "ranks", found.name, f"{found.name}: {found.sentence()}", "look there first"
            )
            result.findings.insert(0, finding)
        return
    kind = found.faults[0].kind.replace(" ", "-").replace("'", "")
    bug = NamedBug(f"ranks-{kind}", found.sentence(), found.remaining, explained=True)
    first = result.diagnoses[0] if result.diagnoses else None
    if first is not None and first.point == found.name:
        result.diagnoses[0] = replace(first, named=[bug, *first.named], indistinguishable=[])
    else:
        result.diagnoses.insert(0, Diagnosis(found.name, named=[bug]))


def _verdict_of(rank: RankDump, path: Path, result: Comparison, found: Culprits | None) -> RankVerdict:
    blocks = sorted({block for block, _ in map(split_name, rank.names) if block is not None})
    wrong = found is not None and rank.rank in found.wrong
    return RankVerdict(
        rank.rank,
        str(path),
        rank.stage,
        (blocks[0], blocks[-1]) if blocks else None,
        len(rank.names),
        "fail" if wrong else "pass",
        found.name if wrong and found is not None else None,
    )
