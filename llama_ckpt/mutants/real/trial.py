"""One program of the corpus run, recorded and compared, and what was said held against what must be said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

import numpy as np

from llama_ckpt.comparing.arithmetic_costs import ArithmeticCosts
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.mutants.real.models import Models, tokens_of
from llama_ckpt.mutants.real.port import Array, Port
from llama_ckpt.mutants.real.record import Prompt, RealBug, RightPort
from llama_ckpt.mutants.rival_metrics import RIVALS
from llama_ckpt.points import split_name

__all__ = ["Bench", "Naming", "RealRun", "at_the_right_point", "graded", "run_bug", "run_right"]

Naming: TypeAlias = Literal["rightly", "half", "not named", "wrongly"]

HEDGED = re.compile(r"a part of it|all but |something else|nothing (known |of .{0,40})?(fits|explains)")
"""What marks a sentence as no name, or not the whole of it."""

PLACE = re.compile(r"^only [a-zA-Z ]+\d[^:]* (is|are) off|^[\w.]+: shape \[|^[\w.]+\[[\d, ]+\] is ")
"""A sentence that says where, or of which shape, not what."""


@dataclass(frozen=True)
class RealRun:
    """One program on one prompt of one model.

    Attributes:
        label: model and length of the prompt.
        caught: it did not pass. at: the first wrong point; "" where none is.
        made: where its error is made, as in `ComparedPoint`, or "arithmetic": in undeclared roundings.
        said: the headline's diagnosis and what lint found.
        naming: how good a name that is.
        rivals: names of other tools' metrics that fail a point when held against the plain port.
        seconds: what comparing took.
    """

    label: str
    caught: bool
    at: str
    made: str
    said: str
    naming: Naming = "not named"
    rivals: frozenset[str] = frozenset()
    seconds: float = 0.0


@dataclass
class Bench:
    """Where programs are run; the plain port's dumps are kept, for the metrics of others."""

    models: Models
    _plain: dict[tuple[str, Prompt], Mapping[str, Array]] = field(default_factory=dict)

    @cached_property
    def folder(self) -> Path:
        """For dumps."""
        self._temporary = TemporaryDirectory(prefix="real_bugs")
        return Path(self._temporary.name)

    def dump(self, program: type[Port], model: str, prompt: Prompt) -> dict[str, Array]:
        """What a program records of a prompt, every point."""
        port = program(self.models.path(model))
        port.first = prompt.first
        with np.errstate(all="ignore"):
            return port.run(tokens_of(prompt), prompt.calls, prompt.n_pad)

    def plain(self, model: str, prompt: Prompt) -> Mapping[str, Array]:
        """The plain port's dump; the latest alone is kept, since they are large."""
        if (model, prompt) not in self._plain:
            self._plain = {(model, prompt): self.dump(Port, model, prompt)}
        return self._plain[model, prompt]

    def compared(
        self, dump: Mapping[str, Array], model: str, prompt: Prompt, dtype: str | None = None
    ) -> Comparison:
        """What `compare` says of a dump; the prompt's positions are declared as they should be."""
        path = self.folder / "theirs.safetensors"
        positions = [prompt.first + i for i in range(prompt.n)]
        save_dump(path, dict(dump), token_ids=list(tokens_of(prompt)), positions=positions)
        return compare_dump(path, model=self.models.path(model), dtype=dtype)


def graded(bug: RealBug, said: str) -> Naming:
    """How well a sentence names a fault."""
    right = re.search(bug.right, said, re.IGNORECASE) is not None
    wrong = bool(bug.wrong) and re.search(bug.wrong, said, re.IGNORECASE) is not None
    hedged = HEDGED.search(said) is not None or PLACE.search(said) is not None
    if right:
        return "half" if wrong or hedged else "rightly"
    if wrong:
        return "wrongly"
    return "not named" if not said or hedged else "wrongly"


def _said(report: Comparison) -> str:
    looks = report.diagnoses[0].sentence() if report.diagnoses else ""
    rounds = "" if _undeclared(report) is None else report.reason
    return "; ".join(filter(None, [looks or rounds, *(one.message for one in report.findings)]))


def _undeclared(report: Comparison) -> ArithmeticCosts | None:
    """The roundings that explain everything, where that is the verdict."""
    return report.arithmetic if report.verdict == "arithmetic" else None


def _first_wrong(report: Comparison) -> tuple[str, str]:
    """The first wrong point and where its error is made; a tensor of another shape is a finding.

    Of roundings that explain everything it is the point that they move most.
    """
    first = report.first_wrong
    if first is not None:
        return first.name, first.made
    rounds = _undeclared(report)
    if rounds is not None:
        return rounds.costs_at, "arithmetic"
    shapes = [one.point for one in report.findings if one.kind in ("shape", "padded")]
    return (shapes[0], "here") if shapes else ("", "")


def _run(bench: Bench, one: RealBug | RightPort, model: str, prompt: Prompt) -> RealRun:
    dump = bench.dump(one.program, model, prompt)
    report = bench.compared(dump, model, prompt, one.dtype)
    at, made = _first_wrong(report)
    plain = bench.plain(model, prompt)
    with np.errstate(all="ignore"):
        rivals = frozenset(
            rival.name for rival in RIVALS if any(not rival.passes(dump[n], plain[n]) for n in plain)
        )
    return RealRun(
        f"{model}/{prompt.n}",
        report.exit_code != 0,
        at,
        made,
        _said(report),
        rivals=rivals,
        seconds=report.seconds,
    )


def run_bug(bug: RealBug, bench: Bench, model: str, prompt: Prompt) -> RealRun:
    """One fault on one prompt, and how it was named."""
    run = _run(bench, bug, model, prompt)
    return RealRun(**vars(run) | {"naming": graded(bug, run.said)})


def run_right(right: RightPort, bench: Bench, model: str, prompt: Prompt) -> RealRun:
    """One right program on one prompt."""
    return _run(bench, right, model, prompt)


def at_the_right_point(bug: RealBug, run: RealRun) -> bool:
    """Whether the first wrong point is one of those that the fault must show at, and made there."""
    if run.made == "arithmetic":  # the same roundings in every block: which of them moves most is chance
        return split_name(run.at)[1] in {split_name(point)[1] for point in bug.at}
    return run.at in bug.at and run.made == "here"
