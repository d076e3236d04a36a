"""The whole corpus run, and what it comes to.

    report = run_real(Path("models"))
    report.figures("early")       # {"entries": …, "caught": …, "right_point": …, "rightly": …, …}

Counted are entries, not runs: one is caught when it is on every prompt, and named as badly as on its worst.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from llama_ckpt.mutants.real.catalogue import real_bugs, right_ports
from llama_ckpt.mutants.real.models import Models
from llama_ckpt.mutants.real.record import Prompt, RealBug, RightPort
from llama_ckpt.mutants.real.trial import Bench, Naming, RealRun, at_the_right_point, run_bug, run_right
from llama_ckpt.mutants.rival_metrics import RIVALS

__all__ = ["GROUPS", "SCHEMA", "Group", "RealReport", "RealRow", "RightRow", "run_real"]

SCHEMA = 1
"""The version of the report's JSON."""

Group: TypeAlias = Literal["early", "late", "apart"]
GROUPS: Mapping[Group, str] = {
    "early": "written before the identifiers",
    "late": "written when they were finished",
    "apart": "not shown by one call of one rank, not counted",
}
"""Whose figures stand together, and what they are."""

WANTED: Mapping[Group, Mapping[str, float]] = {
    "early": {"caught": 0.98, "right_point": 0.95, "rightly": 0.90},
    "late": {"caught": 0.95, "rightly": 0.80},
}
"""What share of a group must be."""

MOST_WRONG = 1 / 50
WORST_FIRST: tuple[Naming, ...] = ("wrongly", "not named", "half", "rightly")
QUICK = ("embedded",)
"""Models whose runs take long: of these the first prompt alone."""


@dataclass
class RealRow:
    """One entry on all of its prompts."""

    bug: RealBug
    runs: list[RealRun] = field(default_factory=list)

    @property
    def group(self) -> Group:
        """Whose figures it counts in."""
        return "apart" if self.bug.needs_run else "late" if self.bug.late else "early"

    @property
    def caught(self) -> bool:
        """On every prompt, and there was one."""
        return bool(self.runs) and all(run.caught for run in self.runs)

    @property
    def right_point(self) -> bool:
        """Always first seen where the fault must show."""
        return self.caught and all(at_the_right_point(self.bug, run) for run in self.runs)

    @property
    def naming(self) -> Naming:
        """The worst of its prompts."""
        return min((run.naming for run in self.runs), key=WORST_FIRST.index, default="not named")

    @property
    def said(self) -> str:
        """What was said on the prompt with the worst name."""
        return next((run.said for run in self.runs if run.naming == self.naming), "")

    @property
    def missed_by(self) -> tuple[str, ...]:
        """Other tools' metrics that fail no point on some prompt."""
        return tuple(r.name for r in RIVALS if any(r.name not in run.rivals for run in self.runs))

    def to_json(self) -> dict[str, Any]:
        """The row of the report's JSON."""
        return {
            "name": self.bug.name,
            "group": self.group,
            "caught": self.caught,
            "right_point": self.right_point,
            "named": self.naming,
            "missed_by": list(self.missed_by),
            "points": sorted({run.at for run in self.runs}),
            "said": "" if self.naming == "rightly" else self.said,
        }


@dataclass
class RightRow:
    """One right program on all of its prompts."""

    right: RightPort
    runs: list[RealRun] = field(default_factory=list)

    @property
    def condemned(self) -> int:
        """On how many prompts it did not pass."""
        return sum(run.caught for run in self.runs)

    @property
    def rivals(self) -> tuple[str, ...]:
        """Other tools' metrics that condemn it."""
        return tuple(r.name for r in RIVALS if any(r.name in run.rivals for run in self.runs))

    def to_json(self) -> dict[str, Any]:
        """The row of the report's JSON."""
        said = next((run.said for run in self.runs if run.caught), "")
        row = {"name": self.right.name, "runs": len(self.runs), "condemned": self.condemned, "said": said}
        return row | {"condemned_by": list(self.rivals)}


@dataclass
class RealReport:
    """All of it; `titles` says what the groups are."""

    titles: ClassVar[Mapping[Group, str]] = GROUPS

    bugs: list[RealRow] = field(default_factory=list)
    right: list[RightRow] = field(default_factory=list)

    def figures(self, group: Group) -> dict[str, int]:
        """Counts of a group's entries: caught, at the right point, and by how they were named."""
        rows = [row for row in self.bugs if row.group == group and row.runs]
        named = Counter(row.naming for row in rows)
        counts = {"entries": len(rows), "caught": sum(row.caught for row in rows)}
        counts["right_point"] = sum(row.right_point for row in rows)
        return counts | {naming.replace(" ", "_"): named[naming] for naming in get_args(Naming)}

    @property
    def condemned(self) -> int:
        """Right programs that did not pass on some prompt."""
        return sum(row.condemned > 0 for row in self.right)

    @property
    def exit_code(self) -> int:
        """0 where each group keeps what is wanted of it and nothing right is condemned; 1 else."""
        ran = any(row.runs for row in self.bugs)
        return 0 if ran and not self.condemned and all(map(self._kept, WANTED)) else 1

    def _kept(self, group: Group) -> bool:
        counts = self.figures(group)
        enough = all(counts[what] >= share * counts["entries"] for what, share in WANTED[group].items())
        return enough and counts["wrongly"] <= MOST_WRONG * counts["entries"]

    def to_json(self) -> dict[str, Any]:
        """The report as `--json` writes it."""
        return {
            "schema": SCHEMA,
            "figures": {group: self.figures(group) for group in GROUPS},
            "condemned": self.condemned,
            "bugs": [row.to_json() for row in self.bugs],
            "right": [row.to_json() for row in self.right],
        }


def _prompts(model: str, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    return prompts[:1] if model in QUICK else prompts


def run_real(
    folder: Path,
    *,
    bugs: Iterable[RealBug] | None = None,
    right: Iterable[RightPort] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> RealReport:
    """Run the corpus.

    Args:
        folder: where the models are made that are not there yet.
        bugs, right: some of the entries and of the right programs; None: all.
        progress: called with what is run, how many programs are done, and of how many.
    """
    bench = Bench(Models(folder))
    rows = [RealRow(bug) for bug in (real_bugs() if bugs is None else bugs)]
    controls = [RightRow(one) for one in (right_ports() if right is None else right)]
    done, of = 0, len(rows) + len(controls)
    for row in rows:
        if progress:
            progress(row.bug.name, done, of)
        for model in row.bug.models:
            row.runs += [run_bug(row.bug, bench, model, p) for p in _prompts(model, row.bug.prompts)]
        done += 1
    for control in controls:
        if progress:
            progress(control.right.name, done, of)
        for model in control.right.models:
            found = _prompts(model, control.right.prompts)
            control.runs += [run_right(control.right, bench, model, p) for p in found]
        done += 1
    return RealReport(rows, controls)
