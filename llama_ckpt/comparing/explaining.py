"""Explaining what is wrong while a dump is walked through: the first wrong points, and the tokens.

Only the first few wrong points are explained, each kind once: a bug that is in every block is the same
bug. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.comparison import ComparedPoint, TokenChoice
from llama_ckpt.comparing.dataflow import BlockFlow
from llama_ckpt.diagnose.bugs import candidates
from llama_ckpt.diagnose.diagnosis import diagnose_point, diagnose_points
from llama_ckpt.diagnose.named import Evidence
from llama_ckpt.diagnose.records import Diagnosis
from llama_ckpt.judging.adjudication import adjudicate
from llama_ckpt.judging.limits import ErrorKind, Limit
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import POINTS, Case, split_name

__all__ = ["MOST_EXPLAINED", "Explainer", "is_explained"]

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
        whole: tuple[Case, Mapping[str, Array]] | None,
        right: Mapping[str, Array],
        mask: NDArray[np.bool_],
        limit: Callable[[str, ErrorKind], Limit],
    ) -> None:
        """Explain the points of one block where an error is made.

        Args:
            judged: by neutral name, in order; theirs, flow, right: as in `walk`.
            whole: the call of the whole block on their input and its answers; None without a model.
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

            def evidence(case: Case, answers: Mapping[str, Array], first: str = point) -> list[Evidence]:
                asked = _of_the_same_call(first, judged, flow, case)
                return [self._evidence(judged[p], theirs[p], answers[p], case, mask, limit) for p in asked]

            if case.function == "block" and whole is not None:
                found = diagnose_points(evidence(*whole))
            else:
                found = diagnose_points(evidence(case, flow.computed))
                if not is_explained(found) and whole is not None:
                    among = [b for b in candidates("block") if b not in candidates(case.function)]
                    wider = diagnose_points(evidence(*whole), among=among)
                    if is_explained(wider):
                        found = replace(found, named=wider.named, indistinguishable=wider.indistinguishable)
            self.diagnoses.append(found)

    def explain_whole(self, evidence: list[Evidence]) -> None:
        """Try on the whole model what no single block explains: blocks left out or in another order.

        Args:
            evidence: the ends of the blocks and the logits, in order, with the call of the whole model.
        """
        if not self.diagnoses or is_explained(self.diagnoses[0]) or not evidence:
            return
        among = [bug for bug in candidates("logits") if bug.function == "logits"]
        found = diagnose_points(evidence, among=among)
        if is_explained(found):
            first = replace(self.diagnoses[0], named=found.named, indistinguishable=found.indistinguishable)
            self.diagnoses[0] = first

    def _by_structure(
        self,
        point: str,
        compared: ComparedPoint,
        theirs: Mapping[str, Array],
        flow: BlockFlow,
        right: Mapping[str, Array],
        mask: NDArray[np.bool_],
        limit: Callable[[str, ErrorKind], Limit],
    ) -> Diagnosis:
        """Without a case no bug can be tried; what the residual looks like can be seen."""
        o = flow.computed.get(point) if compared.made == "here" else right.get(point)
        assert o is not None
        error_kind: ErrorKind = "own" if compared.made == "here" else "total"
        return diagnose_point(
            compared.name,
            theirs[point],
            o,
            limit=limit(compared.name, error_kind),
            mask=mask if POINTS[point].causal else None,
        )

    @staticmethod
    def _evidence(
        compared: ComparedPoint,
        x: Array,
        o: Array,
        case: Case,
        mask: NDArray[np.bool_],
        limit: Callable[[str, ErrorKind], Limit],
    ) -> Evidence:
        causal = POINTS[split_name(compared.name)[1]].causal
        return Evidence(compared.name, x, o, limit(compared.name, "own"), case, mask if causal else None)

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
        noise = limit.row_err * float(np.sqrt(np.mean(o * o)))
        theirs = 0.0 if reference is None else float(np.abs(reference[row] - o).max())
        if got == wanted == best:
            return TokenChoice(row, got, wanted, best, np.nan, noise, "")
        choice = adjudicate(row, got, wanted, o, noise, theirs)
        return TokenChoice(row, got, wanted, best, choice.margin, max(noise, theirs), choice.blame)


def is_explained(found: Diagnosis) -> bool:
    """Whether a bug was named that explains the tensor whole."""
    return any(bug.explained for bug in found.named)


def _of_the_same_call(
    point: str, judged: Mapping[str, ComparedPoint], flow: BlockFlow, case: Case
) -> list[str]:
    """The points that one call answers for, the wrong one first: the right ones tell what it cannot be."""
    answered = [split_name(name)[1] for name in (*case.taps.values(), *case.returns)]
    return [point, *(other for other in judged if other != point and other in answered)]
