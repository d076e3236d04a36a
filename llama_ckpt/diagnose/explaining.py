"""Explaining what is wrong while a dump is walked through: the first wrong points, and the tokens.

Only the first few wrong points are explained, each kind once: a bug that is in every block is the same
bug. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt import oracle
from llama_ckpt.adjudication import adjudicate
from llama_ckpt.diagnose.comparison import ComparedPoint, TokenChoice
from llama_ckpt.diagnose.dataflow import BlockFlow
from llama_ckpt.diagnose.diagnosis import diagnose_point, diagnose_points
from llama_ckpt.diagnose.named import Evidence
from llama_ckpt.diagnose.records import Diagnosis
from llama_ckpt.limits import Forcing, Limit
from llama_ckpt.points import POINTS, Case, split_name

__all__ = ["MOST_EXPLAINED", "Explainer"]

Array: TypeAlias = NDArray[Any]

MOST_EXPLAINED = 3
"""So many wrong points are explained."""


@dataclass
class Explainer:
    """Collects the diagnoses of a walk, the first wrong point's first."""

    diagnoses: list[Diagnosis] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def explain(
        self,
        judged: Mapping[str, ComparedPoint],
        theirs: Mapping[str, Array],
        flow: BlockFlow,
        whole: Mapping[str, Array] | None,
        right: Mapping[str, Array],
        mask: NDArray[np.bool_],
        limit: Callable[[str, Forcing], Limit],
    ) -> None:
        """Explain the points of one block where an error is made.

        Args:
            judged: by neutral name, in order; theirs, flow, right: as in `walk`.
            whole: the whole block on their input, for the residual sums; None without a model.
            mask: of the attention scores.
            limit: gives what holds at a full name.
        """
        for point, compared in judged.items():
            if compared.made not in ("here", "unknown") or len(self.diagnoses) >= MOST_EXPLAINED:
                continue
            case = flow.cases.get(point)
            key = case.function if case is not None else point
            if key in self._seen or (self.diagnoses and compared.made == "unknown"):
                continue
            self._seen.add(key)
            if case is None:
                self.diagnoses.append(self._by_structure(point, compared, theirs, flow, right, mask, limit))
                continue
            answers = whole if case.function == "block" and whole is not None else flow.computed
            evidence = [
                self._evidence(judged[other], theirs[other], answers[other], case, mask, limit)
                for other in _of_the_same_call(point, judged, flow, case)
                if other in answers
            ]
            self.diagnoses.append(diagnose_points(evidence))

    def _by_structure(
        self,
        point: str,
        compared: ComparedPoint,
        theirs: Mapping[str, Array],
        flow: BlockFlow,
        right: Mapping[str, Array],
        mask: NDArray[np.bool_],
        limit: Callable[[str, Forcing], Limit],
    ) -> Diagnosis:
        """Without a case no bug can be tried; what the residual looks like can be seen."""
        o = flow.computed.get(point) if compared.made == "here" else right.get(point)
        assert o is not None
        forcing: Forcing = "teacher" if compared.made == "here" else "free"
        return diagnose_point(
            compared.name,
            theirs[point],
            o,
            limit=limit(compared.name, forcing),
            mask=mask if POINTS[point].causal else None,
        )

    @staticmethod
    def _evidence(
        compared: ComparedPoint,
        x: Array,
        o: Array,
        case: Case,
        mask: NDArray[np.bool_],
        limit: Callable[[str, Forcing], Limit],
    ) -> Evidence:
        causal = POINTS[split_name(compared.name)[1]].causal
        return Evidence(compared.name, x, o, limit(compared.name, "teacher"), case, mask if causal else None)

    def choices(
        self, x: Array, exact: Array | None, reference: Array | None, limit: Limit
    ) -> list[TokenChoice]:
        """The greedy token after each row of logits `[n, vocab]`, and who is right about it.

        Args:
            x: theirs; exact: the oracle's own run's, None without a model; reference: llama.cpp's.
            limit: what holds at the logits: how far rounding may put them.
        """
        right = reference if reference is not None else exact
        if right is None or x.shape != right.shape:
            return []
        got, wanted = oracle.argmax(x), oracle.argmax(right)
        return [
            self._choice(row, int(got[row]), int(wanted[row]), x, exact, reference, limit)
            for row in range(len(x))
        ]

    @staticmethod
    def _choice(
        row: int,
        got: int,
        wanted: int,
        x: Array,
        exact: Array | None,
        reference: Array | None,
        limit: Limit,
    ) -> TokenChoice:
        if exact is None:
            return TokenChoice(row, got, wanted, None, np.nan, np.nan, "" if got == wanted else "unknown")
        o = exact[row]
        best = int(oracle.argmax(o))
        # Their own error counts as noise only as far as rounding explains it.
        rounding = limit.element_err * (np.abs(o).max() + np.sqrt(np.mean(o * o)))
        noise = min(float(np.nan_to_num(np.abs(x[row] - o), nan=np.inf).max()), float(rounding))
        if reference is not None:
            noise += float(np.abs(reference[row] - o).max())
        choice = adjudicate(row, got, wanted if got != wanted else best, o, noise)
        blame = "" if got == wanted == best else choice.blame
        if got == wanted != best and blame == "target":
            blame = "reference"  # they choose alike, and the oracle otherwise
        return TokenChoice(row, got, wanted, best, choice.margin, noise, blame)


def _of_the_same_call(
    point: str, judged: Mapping[str, ComparedPoint], flow: BlockFlow, case: Case
) -> list[str]:
    """The points that one call answers for, the wrong one first: the right ones tell what it cannot be."""
    others = [other for other in judged if other != point and flow.cases.get(other) is case]
    return [point, *others]
