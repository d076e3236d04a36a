"""All faults of runs tried: each layer in the situations, each program on its ranks; and the right programs.

report = run_runs(Path("models"))
report.totals()     # {"bugs": …, "killed": …, "right_place": …, "named": …, "right": …, "condemned": …}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from llama_ckpt.ladder.discovery import discover
from llama_ckpt.ladder.implementation import load_implementation
from llama_ckpt.ladder.situation_trial import situation_trials
from llama_ckpt.mutants.ranks.record import RankBug, RightRanks
from llama_ckpt.mutants.ranks.trial import RankModels, rank_bugs, right_ranks, run_ranks
from llama_ckpt.mutants.runs.layers import LAYER_BUGS, LayerBug

__all__ = ["RunRow", "RunsReport", "run_layer", "run_runs"]


@dataclass(frozen=True)
class RunRow:
    """One fault, or one right program.

    Attributes:
        name, sentence: the catalogue's. where: the point and the situation or the ranks.
        killed: it did not pass. right_place: where it must show. named: it was said what it is.
        said: the words. right: whether it is a right program.
    """

    name: str
    sentence: str
    where: str
    killed: bool
    right_place: bool
    named: bool
    said: str
    right: bool = False


@dataclass
class RunsReport:
    """All of them."""

    rows: list[RunRow] = field(default_factory=list)

    def totals(self) -> dict[str, int]:
        """How many faults there are, were killed, where they must be, and named; right programs condemned."""
        bugs = [row for row in self.rows if not row.right]
        right = [row for row in self.rows if row.right]
        return {
            "bugs": len(bugs),
            "killed": sum(row.killed for row in bugs),
            "right_place": sum(row.right_place for row in bugs),
            "named": sum(row.named for row in bugs),
            "right": len(right),
            "condemned": sum(row.killed for row in right),
        }

    @property
    def exit_code(self) -> int:
        """0 where every fault is killed and named and nothing right is condemned; 1 else."""
        totals = self.totals()
        whole = totals["killed"] == totals["named"] == totals["bugs"]
        return 0 if self.rows and whole and not totals["condemned"] else 1

    def to_json(self) -> dict[str, Any]:
        """The report as `--json` writes it."""
        return {"schema": 1, **self.totals(), "rows": [asdict(row) for row in self.rows]}

    def lines(self) -> Iterator[tuple[str, str]]:
        """The table as lines of text, each with a style."""
        for row in self.rows:
            fine = not row.killed if row.right else row.killed and row.named
            state = "right" if row.right else "killed" if row.killed else "SURVIVED"
            state = "CONDEMNED" if row.right and row.killed else state
            named = "" if row.right or row.named else "  NOT NAMED"
            yield (
                f"{row.name:<34} {state:<9} {row.where:<44} {row.said[:100]}{named}",
                "" if fine else "bold red",
            )
        totals = self.totals()
        said = f"{totals['killed']} of {totals['bugs']} killed, {totals['named']} named"
        yield f"{said}; {totals['condemned']} of {totals['right']} right programs condemned", "bold"


def run_layer(bug: LayerBug) -> RunRow:
    """A wrong layer in every situation of the short set."""
    checkpoint = next(one for one in discover() if one.id == bug.checkpoint)
    own = load_implementation(bug.layer, checkpoint)
    first, where = "", ""
    for trial in situation_trials(own, torch.float32, "cpu", thorough=False):
        for verdict in trial.run(checkpoint):
            if verdict.verdict != "fail":
                continue
            said = f"{trial.situation.label}: {verdict.name}: {verdict.reason}"
            named = re.search(bug.right, said)
            if named or not first:
                first, where = said, f"{verdict.name}, {trial.situation.label}"
            if named:
                return RunRow(bug.name, bug.sentence, where, True, True, True, verdict.reason)
    return RunRow(bug.name, bug.sentence, where, bool(first), bool(first), False, first)


def run_runs(folder: Path, *, progress: Callable[[str, int, int], None] | None = None) -> RunsReport:
    """Try all.

    Args:
        folder: where models are made that are not there yet.
        progress: called with what is tried, how many are done, and of how many.
    """
    models, report = RankModels(folder), RunsReport()
    programs: list[RankBug | RightRanks] = [*rank_bugs(), *right_ranks()]
    of = len(LAYER_BUGS) + len(programs)
    for bug in LAYER_BUGS:
        if progress:
            progress(bug.name, len(report.rows), of)
        report.rows.append(run_layer(bug))
    for program in programs:
        if progress:
            progress(program.name, len(report.rows), of)
        run = run_ranks(program, models)
        ranks = ", ".join(map(str, run.ranks))
        where = f"{run.at}, ranks {ranks}" if run.at else ""
        right = not hasattr(program, "fault")
        sentence = getattr(program, "sentence", "") or getattr(program, "fault", "")
        place = run.right_point
        report.rows.append(
            RunRow(program.name, sentence, where, run.caught, place, run.named, run.said, right)
        )
    return report
