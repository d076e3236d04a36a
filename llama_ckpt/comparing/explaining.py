"""Explaining what is wrong while a dump is walked through: the first wrong points, and the tokens.

Only the first few wrong points are explained, each kind once: a bug that is in every block is the same
bug. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.block_run import BlockRun
from llama_ckpt.comparing.comparison import ComparedPoint, TokenChoice
from llama_ckpt.comparing.evidence import VAST, Call, Limits, answered, evidence, is_vast
from llama_ckpt.comparing.own_run import OwnRun
from llama_ckpt.diagnose.bugs import candidates
from llama_ckpt.diagnose.diagnosis import diagnose_point, diagnose_points
from llama_ckpt.diagnose.named import name_bugs
from llama_ckpt.diagnose.records import Diagnosis
from llama_ckpt.diagnose.rope_rounding import cost_of_angles
from llama_ckpt.identify.record import NOTHING_AROUND, Around
from llama_ckpt.judging.adjudication import adjudicate
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import ErrorKind, Limit
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import ALL_POINTS

__all__ = ["MOST_EXPLAINED", "Explainer", "is_explained", "is_identified"]

Array: TypeAlias = NDArray[Any]

MOST_EXPLAINED = 3
"""So many wrong points are explained."""

MADE = ("here", "between", "unknown")
"""Where an error has to be made to be explained; one that is inherited is explained where it is made."""

ANOTHERS = frozenset({"norm.weight", "block.weights", "product.matrix"})
"""Kinds that say of a step that it has what is another's: of the block or of all blocks that may be only
what shows first, as two norms exchanged or a block left out."""

PART_OF_A_RUN = 0.6
"""What leaves less of a whole run's error is named as a part: an element that a program rounds the other
way than the oracle with that bug does goes through all blocks."""

MOST_TOKENS = 64
"""Of the last row alone no bug is ruled out by the first tokens: longer runs, one a bug, would take long."""


@dataclass
class Explainer:
    """Collects the diagnoses of a walk, the first wrong point's first.

    Attributes:
        diagnoses: of the points where an error is made.
        notes: what is right, and worth knowing.
        around: the model and the prompt, for whoever identifies what was computed.
    """

    around: Around = NOTHING_AROUND
    diagnoses: list[Diagnosis] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)  # functions and points that were explained

    def explain(
        self,
        judged: Mapping[str, ComparedPoint],
        theirs: Mapping[str, Array],
        run: OwnRun,
        whole: OwnRun | None,
        right: Mapping[str, Array],
        mask: NDArray[np.bool_],
        limits: Limits,
    ) -> None:
        """Explain the points of one block where an error is made.

        Args:
            judged: by neutral name, in order; theirs, run, right: as in `walk`.
            whole: the oracle's block on their input; None without a model.
            mask: of the attention scores.
            limits: gives what holds at a full name.
        """
        for point in {"q_rope", "k_rope"} & judged.keys():
            if limits(judged[point].name, "own").dtype == "float32":  # half precision hides what angles cost
                self._note_angles(point, judged[point], theirs[point], run)
        for point, compared in judged.items():
            if compared.made not in MADE or len(self.diagnoses) >= MOST_EXPLAINED or point in self._seen:
                continue
            called = run.call(point)
            key = point if called is None else called[0].function
            if key in self._seen or (self.diagnoses and compared.made == "unknown"):
                continue
            if called is None:
                self._seen.add(point)
                self.diagnoses.append(self._by_structure(point, compared, theirs, run, right, mask, limits))
                continue

            for judged_by in (run, right):
                if isinstance(judged_by, BlockRun):
                    judged_by.let_go_of_parts()  # what is explained is another call

            def shown(call: Call, points: Iterable[str]) -> list[Evidence]:
                return evidence(call, points, judged, theirs, mask, limits)

            around = replace(self.around, theirs=theirs)
            self.diagnoses.append(self._of_a_call(point, judged, Call(*called), whole, shown, around))

    def _of_a_call(
        self,
        point: str,
        judged: Mapping[str, ComparedPoint],
        call: Call,
        whole: OwnRun | None,
        shown: Callable[[Call, Iterable[str]], list[Evidence]],
        around: Around,
    ) -> Diagnosis:
        """Of a wrong point by all that its call answers for, or by what comes before another wrong one."""
        others = [one for one in answered(call.case, judged) if one != point]
        if call.case.function == "block" and "attn_context" in others:
            # Right scores and probabilities of a long prompt cost more than they tell of a whole block.
            others = [one for one in others if not is_vast(judged[one])]
        found = diagnose_points(shown(call, [point, *others]), around=around)
        self._seen |= {call.case.function, point}
        if is_explained(found) or whole is None or _is_settled(found):
            return found
        # Two bugs in one call: what follows the second tells nothing of the first.
        before = list(takewhile(lambda one: judged[one].made not in MADE, others))
        if len(before) < len(others) and call.case.function != "block" and not is_identified(found):
            first = diagnose_points(shown(call, [point, *before]), around=around)
            if is_explained(first) or is_identified(first):
                self._seen.remove(call.case.function)
                self._seen |= set(before)
                return first
        called = whole.call("out")
        plain = _is_plain(found) and around.theirs[point].size > VAST
        if called is not None and call.case.function != "block" and not plain:
            among = [b for b in candidates("block") if b not in candidates(call.case.function)]
            points = [p for p in answered(called[0], judged) if p != point and not is_vast(judged[p])]
            named, alike = name_bugs(shown(Call(*called), [point, *points]), among=among)
            if any(bug.explained and bug.remaining_error < found.err for bug in named):
                return replace(found, named=named, indistinguishable=alike)
        return found

    def explain_whole(self, evidence: list[Evidence]) -> None:
        """Try on the whole model what no single block explains.

        Blocks left out or in another order; where the first wrong point is an end of a block or the
        logits, every bug in all blocks at once.

        Args:
            evidence: the ends of the blocks and the logits, in order, with the call of the whole model.
        """
        if not self.diagnoses or not evidence:
            return
        if is_explained(self.diagnoses[0]) or _is_settled(self.diagnoses[0]):
            return
        call = evidence[0].case
        among = candidates(call.function)
        long = call.function == "last_row" and len(call.arguments["token_ids"]) > MOST_TOKENS
        if long or self.diagnoses[0].point not in (one.name for one in evidence):
            among = tuple(bug for bug in among if bug.function == "logits")
        found = diagnose_points(evidence, among=among, part=PART_OF_A_RUN, around=self.around)
        first = self.diagnoses[0]
        if is_explained(found) or not (first.named or is_identified(first)):
            first = replace(first, named=found.named, indistinguishable=found.indistinguishable)
        if is_identified(found) and not is_identified(first):
            first = replace(first, identified=found.identified, facts="")
        self.diagnoses[0] = first

    def _note_angles(self, point: str, judged: ComparedPoint, turned: Array, run: OwnRun) -> None:
        """Say what the angles of a right rotation cost, where that shows; once."""
        called = None if self.notes or judged.made else run.call(point)
        if called is None or called[0].function != "rope":
            return
        given = called[0].arguments
        said = cost_of_angles(given[point[0]], turned, given["positions"], given["frequencies"])
        if said is not None:
            self.notes.append(said)

    def _by_structure(
        self,
        point: str,
        compared: ComparedPoint,
        theirs: Mapping[str, Array],
        run: OwnRun,
        right: Mapping[str, Array],
        mask: NDArray[np.bool_],
        limits: Limits,
    ) -> Diagnosis:
        """Without a case no bug can be tried; what the residual looks like can be seen."""
        o = right.get(point) if compared.made == "unknown" else run.get(point)
        if o is None:  # nothing was recorded before it
            o = right[point]
        error_kind: ErrorKind = "total" if compared.made == "unknown" else "own"
        return diagnose_point(
            compared.name,
            theirs[point],
            o,
            limit=limits(compared.name, error_kind),
            mask=mask if ALL_POINTS[point].causal else None,
        )

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
        best = wanted if reference is None else int(oracle.argmax(o))
        noise = limit.row_err * float(np.sqrt(np.mean(o * o)))
        theirs = 0.0 if reference is None else float(np.abs(reference[row] - o).max())
        if got == wanted == best:
            return TokenChoice(row, got, wanted, best, np.nan, noise, "")
        choice = adjudicate(row, got, wanted, o, noise, theirs)
        return TokenChoice(row, got, wanted, best, choice.margin, max(noise, theirs), choice.blame)


def is_identified(found: Diagnosis) -> bool:
    """Whether an operator was identified that explains the tensors whole."""
    return any(one.explained for one in found.identified)


def _is_settled(found: Diagnosis) -> bool:
    """Whether what was identified needs no look at more than the call that it is of."""
    explained = [one for one in found.identified if one.explained]
    return bool(explained) and explained[0].kind not in ANOTHERS


def _is_plain(found: Diagnosis) -> bool:
    """Whether all elements are changed alike, as no other order of a block's steps changes them."""
    return any(one.explained and one.kind in ("gain", "bias", "sign", "constant") for one in found.structure)


def is_explained(found: Diagnosis) -> bool:
    """Whether a bug was named that explains the tensor whole."""
    return any(bug.explained for bug in found.named)
