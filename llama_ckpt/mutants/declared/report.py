"""The whole catalogue planted in programs that round on purpose, and what it comes to.

    report = run_planted([arithmetic_named("w8a8-per-token")], Path("models"))
    report.programs[0].figures()       # {"bugs": …, "caught": …, "right_point": …, "named": …, "alarms": …}

A bug that the first prompt does not show is tried on the next; one that none shows, or that is a rounding of
the program's own, is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_ckpt.arithmetic.record import Arithmetic, arithmetic_lines
from llama_ckpt.diagnose.bugs import Bug, candidates
from llama_ckpt.mutants.declared.trial import DeclaredBench, DeclaredRun, run_declared, run_right
from llama_ckpt.mutants.real.models import Models
from llama_ckpt.mutants.real.record import Prompt
from llama_ckpt.mutants.right_programs.catalogue import ROUNDING

__all__ = ["PROMPTS", "PlantedProgram", "PlantedReport", "PlantedRow", "planted_bugs", "run_planted"]

SCHEMA = 1
"""The version of the report's JSON."""

PROMPTS = (("llama3", Prompt(9)), ("linear", Prompt(7, first=3001)))
"""Models and prompts: grouped heads and divided frequencies; then scaled positions, far out."""

WANTED = {"caught": 0.98, "right_point": 0.98, "named": 0.95}
"""What share of the bugs must be."""


@dataclass(frozen=True)
class PlantedRow:
    """One bug, on the prompt that shows it."""

    bug: Bug
    run: DeclaredRun

    @property
    def by_name(self) -> bool:
        """The diagnosis puts it first, alone or with others that are alike here."""
        return self.run.caught and self.bug.name in self.run.names

    @property
    def named(self) -> bool:
        """By its name, or as the operator that gives the tensors whole."""
        return self.by_name or (self.run.caught and self.run.operator != "")

    def to_json(self) -> dict[str, Any]:
        """The row of the report's JSON."""
        run = self.run
        plain = {"name": self.bug.name, "prompt": run.label, "at": run.at, "moved": float(f"{run.moved:.2g}")}
        plain |= {"caught": run.caught, "seen": run.seen, "named": self.named, "by_name": self.by_name}
        return plain if self.by_name and run.at_the_right_point else plain | {"said": run.said}


@dataclass
class PlantedProgram:
    """A program of one arithmetic: with each bug, and without any.

    Attributes:
        arithmetic: what it rounds.
        rows: of the bugs that a prompt shows. right: of the program alone, its sums in every order.
    """

    arithmetic: Arithmetic
    rows: list[PlantedRow] = field(default_factory=list)
    right: list[DeclaredRun] = field(default_factory=list)

    def figures(self) -> dict[str, int]:
        """Counts."""
        return {
            "bugs": len(self.rows),
            "caught": sum(row.run.caught for row in self.rows),
            "right_point": sum(row.run.at_the_right_point for row in self.rows),
            "named": sum(row.named for row in self.rows),
            "by_name": sum(row.by_name for row in self.rows),
            "right": len(self.right),
            "alarms": sum(run.caught for run in self.right),
        }

    @property
    def kept(self) -> bool:
        """Whether all is there that is wanted, and nothing right is condemned."""
        counts = self.figures()
        enough = all(counts[what] >= share * counts["bugs"] for what, share in WANTED.items())
        return bool(self.rows) and enough and not counts["alarms"]

    def to_json(self) -> dict[str, Any]:
        """The record under `programs`."""
        return {
            "arithmetic": arithmetic_lines(self.arithmetic),
            "figures": self.figures(),
            "bugs": [row.to_json() for row in self.rows],
            "alarms": [asdict(run) for run in self.right if run.caught],
        }


@dataclass
class PlantedReport:
    """All programs."""

    programs: list[PlantedProgram] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 where each keeps what is wanted, else 1."""
        return 0 if self.programs and all(one.kept for one in self.programs) else 1

    def to_json(self) -> dict[str, Any]:
        """The report as `--json` writes it."""
        return {"schema": SCHEMA, "programs": [one.to_json() for one in self.programs]}


def planted_bugs() -> tuple[Bug, ...]:
    """The bugs that a whole run may have: of all that is computed between tokens and logits."""
    return candidates("logits")


def run_planted(
    arithmetics: Sequence[Arithmetic],
    folder: Path,
    *,
    bugs: Sequence[Bug] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> PlantedReport:
    """Plant bugs in a program of each arithmetic.

    Args:
        folder: where models are made, and dumps written.
        bugs: some of the catalogue; None: all of it.
        progress: called with what is tried, how many are done, and of how many.
    """
    chosen, models, report = planted_bugs() if bugs is None else bugs, Models(folder), PlantedReport()
    for number, arithmetic in enumerate(arithmetics):
        benches = [DeclaredBench(arithmetic, models.path(m), prompt, folder) for m, prompt in PROMPTS]
        program = PlantedProgram(arithmetic)
        report.programs.append(program)
        program.right += [run_right(bench, seed) for bench in benches for seed in range(len(ROUNDING))]
        for seed, bug in enumerate(chosen):
            if progress:
                done = number * len(chosen) + seed
                progress(f"{arithmetic.name}: {bug.name}", done, len(arithmetics) * len(chosen))
            program.rows += [PlantedRow(bug, run) for run in _first(bug, benches, seed)]
    return report


def _first(bug: Bug, benches: Sequence[DeclaredBench], seed: int) -> Iterator[DeclaredRun]:
    """The run on the first prompt that shows the bug; none where none does."""
    for bench in benches:
        run = run_declared(bug, bench, seed)
        if run is not None:
            yield run
            return
