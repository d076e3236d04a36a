"""All mutants and all benign variants on many prompts, and what it comes to.

    report = run_mutants(seeds=10)
    report.totals()     # {"bugs": …, "killed": …, "killed_by_named_checkpoint": …, "named_first": …, …}

Counted are bugs, not runs: one is killed when it is on every prompt that shows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from llama_ckpt.diagnose.bugs import Bug, catalogue
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.mutants.models import MIXTURES, SHAPES, GivenPrompt, embedded_given, seeded_given
from llama_ckpt.mutants.right_programs.catalogue import ROUNDING, VARIANTS, Variant
from llama_ckpt.mutants.rival_metrics import RIVALS
from llama_ckpt.mutants.trial import Bench, BugRun, VariantRun, run_bug, run_variant

__all__ = ["SCHEMA", "BugRow", "MutantReport", "VariantRow", "run_mutants", "runs_of"]

SCHEMA = 1
"""The version of the report's JSON."""


@dataclass
class BugRow:
    """One bug on every prompt that shows it."""

    bug: Bug
    runs: list[BugRun] = field(default_factory=list)

    @property
    def killed(self) -> bool:
        """On every prompt, and there was one."""
        return bool(self.runs) and all(run.killed_by for run in self.runs)

    @property
    def by_named_checkpoint(self) -> bool:
        """Always by the checkpoint that the catalogue names, never by an earlier one."""
        return self.killed and all(run.by_named_checkpoint for run in self.runs)

    @property
    def named_first(self) -> bool:
        """Always the diagnosis puts it first, alone or said to be alike with others."""
        return self.killed and all(run.named_first or run.indistinguishable for run in self.runs)

    @property
    def indistinguishable(self) -> tuple[str, ...]:
        """The bugs that it could not be told from on some prompt."""
        groups = (run.group for run in self.runs if run.indistinguishable)
        return tuple(sorted({name for group in groups for name in group} - {self.bug.name}))

    def missed_by(self, rival: str) -> int | None:
        """On how many prompts another tool's metric fails no point; None where there are integers only."""
        seen = [run.rivals for run in self.runs if run.rivals is not None]
        return sum(rival not in one for one in seen) if seen else None

    def to_json(self) -> dict[str, Any]:
        """The row of the report's JSON."""
        killers = Counter(run.killed_by or "" for run in self.runs)
        structures = Counter(kind for run in self.runs for kind in _first_structure(run))
        return {
            "name": self.bug.name,
            "sentence": self.bug.sentence,
            "checkpoint": self.bug.checkpoint,
            "function": self.bug.function,
            "prompts": len(self.runs),
            "killed_by": dict(killers),
            "points": dict(Counter(_neutral(run.point) for run in self.runs)),
            "saw": dict(Counter(metric for run in self.runs for metric in run.saw)),
            "named_alone": sum(run.named_first for run in self.runs),
            "named_in_group": sum(run.indistinguishable for run in self.runs),
            "indistinguishable_from": list(self.indistinguishable),
            "called": dict(Counter(run.group[0] if run.group else "" for run in self.runs)),
            "structure": dict(structures),
            "missed_by": {rival.name: self.missed_by(rival.name) for rival in RIVALS},
        }


def _first_structure(run: BugRun) -> tuple[str, ...]:
    found = run.diagnosis.structure if run.diagnosis else []
    return (found[0].kind,) if found else ()


def _neutral(point: str) -> str:
    """Without the block's number, or a setting's."""
    name = point.split(".", 2)[2] if point.startswith("blk.") else point
    return name.split(".")[0]


@dataclass
class VariantRow:
    """One benign variant on every prompt."""

    variant: Variant
    runs: list[VariantRun] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The row of the report's JSON."""
        alarms = [alarm for run in self.runs for alarm in run.alarms]
        return {
            "name": self.variant.name,
            "sentence": self.variant.sentence,
            "dtype": self.variant.dtype,
            "prompts": len(self.runs),
            "points": sum(run.judged for run in self.runs),
            "false_alarms": [f"{one.label}: {one.point} {', '.join(one.saw)}" for one in alarms],
            "condemned_by": {r.name: sum(r.name in run.rivals for run in self.runs) for r in RIVALS},
        }


@dataclass
class MutantReport:
    """Both catalogues on trial.

    Attributes:
        seeds: how many seeds; each makes a prompt on a model of each shape.
        prompts: labels of all prompts, the embedded model's among them.
        bugs, variants: one row each.
    """

    seeds: int
    prompts: list[str]
    bugs: list[BugRow]
    variants: list[VariantRow]

    def totals(self) -> dict[str, int]:
        """How many bugs there are, were killed, and so on; false alarms are points of right programs."""
        return {
            "bugs": len(self.bugs),
            "killed": sum(row.killed for row in self.bugs),
            "killed_by_named_checkpoint": sum(row.by_named_checkpoint for row in self.bugs),
            "named_first": sum(row.named_first for row in self.bugs),
            "indistinguishable": sum(bool(row.indistinguishable) for row in self.bugs),
            "benign": len(self.variants),
            "false_alarms": sum(len(run.alarms) for row in self.variants for run in row.runs),
            "seeds": self.seeds,
        }

    @property
    def cases(self) -> dict[str, int]:
        """The same counted in runs: a bug on a prompt that shows it."""
        runs = [run for row in self.bugs for run in row.runs]
        return {
            "runs": len(runs),
            "killed": sum(run.killed_by is not None for run in runs),
            "killed_by_named_checkpoint": sum(run.by_named_checkpoint for run in runs),
            "named_alone": sum(run.named_first for run in runs),
            "named_in_group": sum(run.indistinguishable for run in runs),
        }

    @property
    def rivals(self) -> list[dict[str, Any]]:
        """What each metric of other tools misses and condemns; ours is the first row.

        `missed` counts bugs with a prompt on which it fails no point, `always_missed` those that it
        never fails; `of` those that show in tensors at all.
        """
        rows = [row for row in self.bugs if row.missed_by(RIVALS[0].name) is not None]
        missed = sum(not row.killed for row in rows)
        condemned = [row for row in self.variants if any(run.alarms for run in row.runs)]
        ours = {"name": "llama_ckpt", "used_by": "this project", "formula": "limits from measured rounding"}
        table = [
            ours | _counted(missed, sum(not any(r.killed_by for r in row.runs) for row in rows), condemned)
        ]
        for rival in RIVALS:
            misses = [(row.missed_by(rival.name) or 0, len(row.runs)) for row in rows]
            condemned = [row for row in self.variants if any(rival.name in run.rivals for run in row.runs)]
            counts = _counted(sum(n > 0 for n, _ in misses), sum(n == of for n, of in misses), condemned)
            table.append({"name": rival.name, "used_by": rival.used_by, "formula": rival.formula} | counts)
        return [row | {"of": len(rows)} for row in table]

    @property
    def exit_code(self) -> int:
        """0 where every bug is killed by its checkpoint, 95% named first, and nothing right is condemned.

        1 where nothing was tried.
        """
        totals = self.totals()
        killed = totals["killed_by_named_checkpoint"] == totals["bugs"]
        named = totals["named_first"] >= 0.95 * totals["bugs"]
        tried = any(row.runs for row in self.bugs) or any(row.runs for row in self.variants)
        return 0 if tried and killed and named and not totals["false_alarms"] else 1

    def to_json(self) -> dict[str, Any]:
        """The report as `--json` writes it: the totals first, then what they are made of."""
        return {
            **self.totals(),
            "schema": SCHEMA,
            "prompts": self.prompts,
            "cases": self.cases,
            "metrics": self.rivals,
            "catalogue": [row.to_json() for row in self.bugs],
            "variants": [row.to_json() for row in self.variants],
        }


def _counted(missed: int, always_missed: int, condemned: Sequence[VariantRow]) -> dict[str, int]:
    half = sum(row.variant.dtype != "float32" for row in condemned)
    return {
        "missed": missed,
        "always_missed": always_missed,
        "condemned_float32": len(condemned) - half,
        "condemned_half": half,
    }


def runs_of(
    given: GivenPrompt,
    number: int = 0,
    *,
    bugs: Iterable[Bug] = catalogue(),
    variants: Iterable[Variant] = VARIANTS,
) -> Iterator[BugRun | VariantRun]:
    """Everything on one prompt.

    Args:
        given: the prompt.
        number: of the prompt; chooses the rounding that bugs are laid over.
        bugs: those tried; None: all. variants: the same.
    """
    ladder = discover()
    roundings = [one for one in ROUNDING if not (one.of_q8_0 and given.recorded)]
    bench = Bench(given, ladder)
    for bug in catalogue() if bugs is None else bugs:
        run = run_bug(bug, bench, roundings[number % len(roundings)])
        if run is not None:
            yield run
    benches = {"float32": bench}
    for variant in variants:
        if variant.of_q8_0 and given.recorded:
            continue  # the recorded model's weights do not come from Q8_0
        if variant.dtype not in benches:
            benches[variant.dtype] = Bench(given.rounded_to(variant.dtype), ladder)
        yield run_variant(variant, benches[variant.dtype])


def run_mutants(
    seeds: int = 10,
    *,
    embedded: bool = True,
    bugs: Sequence[Bug] | None = None,
    variants: Sequence[Variant] = VARIANTS,
    progress: Callable[[str, int, int], None] | None = None,
) -> MutantReport:
    """Try every bug and every benign variant on every prompt.

    Args:
        seeds: how many seeds; each makes one model and prompt of each shape.
        embedded: llama.cpp's dumps of the embedded model too.
        bugs: some of the catalogue; None: all. variants: the benign ones.
        progress: called with what is tried, how many prompts are done, and of how many.
    """
    rows = {bug.name: BugRow(bug) for bug in (catalogue() if bugs is None else bugs)}
    right = {variant.name: VariantRow(variant) for variant in variants}
    of_experts = {one.id for one in discover() if one.experts}
    routed = [row.bug for row in rows.values() if row.bug.checkpoint in of_experts]
    dense = [row.bug for row in rows.values() if row.bug.checkpoint not in of_experts]
    shapes = (*SHAPES, *(MIXTURES if routed else ()))
    seeded = (seeded_given(shape, seed) for seed in range(seeds) for shape in shapes)
    prompts: list[str] = []
    for number, given in enumerate(chain(seeded, embedded_given() if embedded else ())):
        if progress:
            progress(given.label, number, seeds * len(shapes))
        prompts.append(given.label)
        chosen, right_ones = (routed, ()) if given.config.n_experts else (dense, variants)
        for run in runs_of(given, number // len(shapes), bugs=chosen, variants=right_ones):
            if isinstance(run, BugRun):
                rows[run.bug.name].runs.append(run)
            else:
                right[run.variant.name].runs.append(run)
    return MutantReport(seeds, prompts, list(rows.values()), list(right.values()))
