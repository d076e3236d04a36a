"""What a validation notes beside its verdicts: what the first failures look like, and figures for a page.

One observer is shared by all trials of a validation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.comparing.arithmetic_costs import ArithmeticCosts
from llama_ckpt.diagnose.diagnosis import diagnose_points
from llama_ckpt.diagnose.evidence import Predictions
from llama_ckpt.diagnose.records import Diagnosis
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.tally import Tally
from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.ladder.judge import RecordingJudge
from llama_ckpt.oracle.patched_oracle import PatchedOracle
from llama_ckpt.points import Case, split_name

__all__ = ["MOST_EXPLAINED", "Observer"]

MOST_EXPLAINED = 3
"""So many failures of a checkpoint are explained, each kind of point once."""

UNEXPLAINED = ("tokenize", "generate")
"""Functions whose results are no tensors of the catalogue."""


@dataclass
class Observer:
    """Collects while trials run.

    Attributes:
        keep_tally: whether figures for a page are kept; they cost some time.
        tally: those figures.
        diagnoses: of the failures since the last `take`.
        costs: what a declared arithmetic costs, and what it leaves; None where none was declared.
    """

    keep_tally: bool = False
    tally: Tally = field(default_factory=Tally)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    costs: ArithmeticCosts | None = None
    _seen: set[tuple[str, ...]] = field(default_factory=set)

    def saw(
        self,
        label: str,
        name: str,
        error_kind: str,
        x: NDArray[Any] | None,
        o: NDArray[Any],
        mask: NDArray[np.bool_] | None,
    ) -> None:
        """One tensor is being judged, of the recording `label`."""
        if self.keep_tally and x is not None:
            self.tally.add(name, error_kind, x, o, mask, label)

    def explain(
        self,
        verdicts: Sequence[PointVerdict],
        made: Mapping[str, Any],
        wanted: Mapping[str, Any],
        case: Case,
        spreads: Mapping[str, Spread],
        judge: RecordingJudge,
        base: PatchedOracle | None = None,
    ) -> None:
        """Explain the first failing point of one call with recorded inputs.

        Args:
            verdicts: on its points; made, wanted: its tensors and the oracle's, by full name.
            case: the same call as the oracle takes it.
            spreads: what rounding may leave in its answers.
            judge: of the recording, which knows limits and masks.
            base: the oracle that wanted is of, where that rounds as declared.
        """
        failing = [one.name for one in verdicts if one.verdict == "fail" and made.get(one.name) is not None]
        failing = [name for name in failing if not math.isnan(judge.limit(name, "own").err)]
        if not failing or case.function in UNEXPLAINED or len(self.diagnoses) >= MOST_EXPLAINED:
            return
        kind = tuple(split_name(name)[1] for name in failing)
        if kind in self._seen:
            return
        self._seen.add(kind)
        rest = [
            one.name
            for one in verdicts
            if one.name not in failing[:1]
            and made.get(one.name) is not None
            and not math.isnan(judge.limit(one.name, "own").err)  # without a limit there is no telling
        ]
        evidence = [
            _evidence(name, made[name], wanted[name], case, spreads.get(name), judge, base)
            for name in [failing[0], *rest]
        ]
        with np.errstate(all="ignore"):
            found = diagnose_points(evidence, predictions=Predictions(base))
        known = {one.sentence() for one in self.diagnoses}
        if found.sentence() not in known and (found.sentence() or found.smallest_limit):
            self.diagnoses.append(found)

    def note_costs(self, verdicts: Sequence[PointVerdict], costs: Mapping[str, float]) -> None:
        """What a declared arithmetic costs at the points of one call, and what it leaves there."""
        for one in verdicts:
            if self.costs is not None and math.isfinite(one.err):
                self.costs.note(one.name, costs[one.name], one.err, one.verdict == "pass")

    def noted(self, found: Diagnosis) -> None:
        """A diagnosis that somebody else came to; each sentence once."""
        known = {one.sentence() for one in self.diagnoses}
        if found.sentence() not in known and len(self.diagnoses) < MOST_EXPLAINED:
            self.diagnoses.append(found)

    def take(self) -> list[Diagnosis]:
        """The diagnoses so far; the next checkpoint begins with none."""
        taken, self.diagnoses, self._seen = self.diagnoses, [], set()
        return taken


def _evidence(
    name: str,
    x: Any,
    o: Any,
    case: Case,
    spread: Spread | None,
    judge: RecordingJudge,
    base: PatchedOracle | None,
) -> Evidence:
    array = (
        x.double().cpu().numpy() if isinstance(x, torch.Tensor) and x.is_floating_point() else np.asarray(x)
    )
    return Evidence(
        name,
        array,
        o,
        judge.own_limit(name, o, spread),
        case,
        judge.mask(name),
        base,
    )
