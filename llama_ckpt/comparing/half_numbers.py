"""A program in half precision whose tensors are written as float32, as whoever turns them into numpy does.

Its numbers say so: each is one of bfloat16 or float16, which of a float32 result hardly any is. Where its
roundings cannot be told one by one, since too little was recorded, it is judged as the precision has it, and
what passes differs by arithmetic that was not declared. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from llama_ckpt.arithmetic.formats import rounded
from llama_ckpt.comparing.arithmetic_costs import ArithmeticCosts
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.comparing.sides import Sides
from llama_ckpt.dumps.theirs import TheirDump
from llama_ckpt.points import split_name

__all__ = ["HalfNumbers", "half_numbers", "in_half", "is_told_better"]

_BY_CHANCE: Final = 64
"""So many numbers are one of a half precision by chance in no program that computes in float32."""

_WIDER: Final = (
    frozenset({"embd"}),  # a table's rows, whatever becomes of them
    frozenset({"attn_scores", "attn_probs", "logits"}),  # may be float32 in a program in half precision
    frozenset({"ffn_inp", "out"}),  # and so may the residual stream
)


def half_numbers(sides: Sides, asked: str | None) -> Literal["bfloat16", "float16"] | None:
    """In which half precision a dump was computed that says float32, or nothing; None where it was not.

    Args:
        asked: the precision that the caller names.
    """
    if asked or sides.theirs.declared.dtype or sides.dtype != "float32" or sides.weights is None:
        return None
    if sides.arithmetic is not None:
        return None
    telling = set(sides.theirs.names)
    for points in _WIDER:
        fewer = {name for name in telling if split_name(name)[1] not in points}
        telling = fewer or telling
    if telling and all(split_name(name)[1] == "embd" for name in telling):
        return None
    # Each number of bfloat16 of a usual size is one of float16 too.
    for kind in ("bfloat16", "float16"):
        if _all_are(sides.theirs, sorted(telling), kind):
            return kind
    return None


def _all_are(theirs: TheirDump, names: Iterable[str], kind: str) -> bool:
    """Whether all these tensors hold numbers of a format alone, and enough of them to say so."""
    n = 0
    for name in names:
        x = theirs.raw(name)
        if not np.array_equal(rounded(np.asarray(x, np.float64), kind), x, equal_nan=True):
            return False
        n += int(np.count_nonzero(x))
    return n >= _BY_CHANCE


def is_told_better(result: Comparison, kind: str) -> bool:
    """Whether what is wrong was explained, and not as a rounding to that precision, which may hide it."""
    for diagnosis in result.diagnoses[:1]:
        named = any(bug.explained and not bug.name.endswith(kind) for bug in diagnosis.named[:1])
        return named or any(operator.explained for operator in diagnosis.identified[:1])
    return False


@dataclass
class HalfNumbers(ArithmeticCosts):
    """What half precision leaves of a program that does not say so; it costs no more than that."""

    @property
    def option(self) -> str:
        """How it is declared on the command line."""
        return f"--dtype {self.name}"

    def sentence(self) -> str:
        """What says so, and how far it is off."""
        where = f"; off by at most {self.left:.1e} ({self.left_at})" if self.left_at else ""
        return f"{self.words}{where}"

    def found_out(self) -> str:
        """The same, and how to declare it."""
        return f"{self.sentence()}; declare it: {self.option}"


def in_half(result: Comparison, kind: str) -> Comparison:
    """A comparison in half precision, of a dump that does not say so, with what is to be declared."""
    costs = HalfNumbers(kind, "", {}, declared=False, words=f"every number is one of {kind}, judged as such")
    for point in result.points:
        if not point.made and np.isfinite(point.leading.err):
            costs.note(point.name, 0.0, point.leading.err, passes=True)
    result.arithmetic = costs
    return result
