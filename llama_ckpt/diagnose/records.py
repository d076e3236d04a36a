"""What a diagnosis says: plain records, for reports of any kind."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.record import Identified, within_but_not_so
from llama_ckpt.json_values import finite

__all__ = ["Change", "Diagnosis", "Finding", "NamedBug", "SmallestLimit"]

SIMPLE = frozenset({"permutation", "heads", "position", "layer", "axes", "sign", "constant"})
"""Kinds of changes that say more than two bugs of a catalogue that happen to give them."""


FITTED = re.compile(r"rope-(theta|factor|llama-3)-fitted")
"""Bugs with a number that was fitted: what became of the file's own scaling of RoPE says more."""


FAR_LESS = 0.5
"""Of what a bug leaves that passes no more than this share is left where the numbers themselves come out."""


@dataclass(frozen=True)
class Finding:
    """A simple change of the right tensor that gives the wrong one.

    Attributes:
        kind: "gain", "bias", "sign", "permutation", "heads", "position", "layer", "token", "head",
            "feature", "axes", "rounding", "saturation", "constant".
        sentence: what was found, with its figures.
        remaining_error: the relative error that is left when the change is undone.
        explained: whether what is left would pass; if not, it is at best a part of the truth.
        share: of the error that it explains, 0 to 1.
        allowed: what rounding may leave at this point in this precision, the limit on the error.
    """

    kind: str
    sentence: str
    remaining_error: float
    explained: bool = False
    share: float = 1.0
    allowed: float = math.nan

    def said(self) -> str:
        """The finding with what it leaves, a sentence for a report."""
        return _with_what_is_left(self.sentence, self)


@dataclass(frozen=True)
class Change:
    """The oracle's tensor changed in some way, to be held against the tensor on trial.

    Attributes:
        kind, sentence: as in `Finding`.
        changed: the tensor, of the trial's shape.
    """

    kind: str
    sentence: str
    changed: NDArray[np.float64]


@dataclass(frozen=True)
class NamedBug:
    """A bug of the catalogue that gives (nearly) the wrong tensor.

    Attributes:
        name, sentence, checkpoint: the catalogue's.
        remaining_error: relative error of the tensor on trial against the oracle with that bug, where it
            is the largest for the limit that holds.
        explained: whether every tensor would pass; if not, it is at best a part of the truth.
        share, allowed: as in `Finding`.
        beyond: where all but a few elements fit within rounding, the share of those few: a bug that
            rounds may round some the other way. NaN where more are off.
        rounds: whether it is a bug that rounds.
    """

    name: str
    sentence: str
    remaining_error: float
    explained: bool = False
    checkpoint: str = ""
    share: float = 1.0
    allowed: float = math.nan
    beyond: float = math.nan
    rounds: bool = False

    def said(self, alike: str = "") -> str:
        """The bug with what it leaves, a sentence for a report; `alike` stands behind its name."""
        if not self.explained and self.beyond == 0:
            return f"{self.sentence}{alike}: {within_but_not_so(self.remaining_error, self.allowed)}"
        if not self.explained and math.isfinite(self.beyond):
            few = f"{100 * self.beyond:.2g}% of the elements, where {self.remaining_error:.1e} remains"
            return f"{self.sentence}{alike}: all but {few}: rounded another way, or something else as well"
        said = _with_what_is_left(self.sentence + alike, self)
        other = "something else as well"
        return said.replace(other, f"rounded another way, or {other}") if self.rounds else said


def _says_it_simpler(operator: Identified | None, bug: NamedBug) -> bool:
    """Whether it says what became of the file's scaling, or one thing of what a fitted bug makes two."""
    if operator is None or not operator.explained or operator.free_numbers > 1:
        return False
    return operator.kind == "rope.scaling" or ", and " in bug.sentence


def _gives_its_numbers(operator: Identified | None, bug: NamedBug | None) -> bool:
    """Whether it gives a half-precision norm's very numbers, of which a bug that passes misses many."""
    if operator is None or bug is None or not operator.explained or operator.free_numbers:
        return False
    return operator.kind.startswith("norm.") and operator.left < FAR_LESS * bug.remaining_error


def _is_part(one: NamedBug | Identified | Finding) -> bool:
    return not one.explained


def _with_what_is_left(sentence: str, found: Finding | NamedBug) -> str:
    """What rounding may leave needs no word; where more is left, something else is wrong as well."""
    left = found.remaining_error
    if found.explained:
        return f"{sentence}: remaining error {left:.1e}"
    if not found.share > 0:
        return f"a part of it, in most elements: {sentence}; {left:.1e} remains: something else as well"
    share = min(math.floor(1000 * found.share) / 10, 99.9)  # never all of it
    part = f"a part of it: {sentence}; explains {share:.3g}% of the error; {left:.1e} remains"
    if left <= found.allowed:
        return f"{part}, too much of it in a row, in an element or one way: something else as well"
    allowed = f"{found.allowed:.1e} at most" if found.allowed > 0 else "nothing"
    return f"{part} where rounding leaves {allowed}: something else as well"


@dataclass(frozen=True)
class SmallestLimit:
    """The smallest limits that the tensor would pass: its own errors, and how far they are beyond.

    Attributes:
        err, row_err, element_err, gain, bias: as in `limits.Limit`, gain and bias as of 4,096 elements.
        turn: radians, of a rotation; 0 of all else.
        factor: the largest of them over the limit that holds: all limits times this would pass.
        metric: which of them that is.
    """

    err: float
    row_err: float
    element_err: float
    gain: float
    bias: float
    factor: float
    metric: str
    turn: float = 0.0


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with one point, as far as its tensor tells.

    Attributes:
        point: its full name.
        err: the relative error to be explained.
        structure: simple changes that give the tensor, best first.
        named: bugs that give the tensor, or most of it, best first.
        indistinguishable: groups of names in `named` whose tensors are equal within what is left.
        smallest_limit: None where the tensor cannot be measured, or must be exact.
        identified: operators that give the tensors of the call, or most of them, best first.
        facts: where none gives them whole: what is off, and by how much; else "".
        like: where none gives a part of them either: what the numbers are like, a sentence; else "".
    """

    point: str
    err: float = math.nan
    structure: list[Finding] = field(default_factory=list)
    named: list[NamedBug] = field(default_factory=list)
    indistinguishable: list[tuple[str, ...]] = field(default_factory=list)
    smallest_limit: SmallestLimit | None = None
    identified: list[Identified] = field(default_factory=list)
    facts: str = ""
    like: str = ""

    def sentence(self) -> str:
        """The likeliest explanation in one sentence, with the remaining error; empty where there is none.

        What explains the tensor whole goes before what explains a part; then a bug of the catalogue, whose
        words are the best, before what was identified, that before a simple change, and that before two
        bugs at once; what became of the file's scaling of RoPE, before a number that was fitted to it. Where
        nothing fits, the facts.
        """
        best = self._best()
        if self.like and (best is None or _is_part(best)):
            return f"{self.like}; {self.facts}" if self.facts else self.like
        if isinstance(best, NamedBug):
            groups = [group for group in self.indistinguishable if best.name in group]
            alike = dict.fromkeys(name for group in groups for name in group if name != best.name)
            return best.said(f" (or, alike here: {', '.join(alike)})" if alike else "")
        if best is None:
            return f"nothing known fits: {self.facts}" if self.facts else ""
        return best.said()

    def _best(self) -> NamedBug | Identified | Finding | None:
        """What is said first."""
        bug = self.named[0] if self.named else None
        operator = self.identified[0] if self.identified else None
        change = self.structure[0] if self.structure else None
        several = bug is not None and "+" in bug.name
        if several and change is not None and change.kind not in SIMPLE:
            change = None  # two bugs say more than a change with many numbers
        if change is not None and " of its own" in change.sentence:
            change = None  # fits much, and says nothing of what was computed
        if bug is not None and FITTED.fullmatch(bug.name) and _says_it_simpler(operator, bug):
            bug = None  # a theta or a factor that happens to give the same
        several = several or _gives_its_numbers(operator, bug)
        found = [operator, change, bug] if several else [bug, operator, change]
        return min((one for one in found if one is not None), key=_is_part, default=None)

    @property
    def operator(self) -> Identified | None:
        """What was identified, where that is what is said, or says more of the bug that is."""
        best = self._best()
        operator = self.identified[0] if self.identified else None
        whole = operator is not None and operator.explained
        return operator if best is operator or (isinstance(best, NamedBug) and whole) else None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; NaN and infinity become None."""
        identified = [one.to_json() for one in self.identified]
        plain: dict[str, Any] = finite(dataclasses.asdict(dataclasses.replace(self, identified=[])))
        return plain | {"identified": identified, "sentence": self.sentence()}
