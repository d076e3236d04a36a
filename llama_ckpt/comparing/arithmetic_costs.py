"""What a program's roundings cost, point by point, and what they leave unexplained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_ckpt.arithmetic.profiles import PROFILES

__all__ = ["ArithmeticCosts", "UnprovedCosts"]


@dataclass
class ArithmeticCosts:
    """An arithmetic, declared or found out, and its two numbers.

    Attributes:
        name, source: of the arithmetic; lines: as JSON has it.
        declared: by the program; False where it was found out.
        words: what is rounded, in words, where it was found out.
        costs: the largest relative error that the roundings make at a point, against the exact one on the
            same inputs; costs_at: which point.
        left: the largest own error beside the roundings, of points that pass; left_at: which.
        of: how far from exact a tensor is that whole blocks lie before; 0 where none do.
    """

    name: str
    source: str
    lines: Mapping[str, Any]
    declared: bool = True
    words: str = ""
    costs: float = 0.0
    costs_at: str = ""
    left: float = 0.0
    left_at: str = ""
    of: float = 0.0

    def note(self, name: str, costs: float, left: float, passes: bool) -> None:
        """Take one point."""
        if costs > self.costs:
            self.costs, self.costs_at = costs, name
        if passes and left > self.left:
            self.left, self.left_at = left, name

    @property
    def option(self) -> str:
        """How it is declared on the command line."""
        if self.name in PROFILES:
            return f"--arithmetic {self.name}"
        lines = {name: value for name, value in self.lines.items() if name not in ("name", "about", "source")}
        return f"--arithmetic '{json.dumps(lines)}'"

    def sentence(self) -> str:
        """Both numbers."""
        cost = f" costs {self.costs:.1e} ({self.costs_at})" if self.costs_at else ""
        return f"{self.name}{cost}, left unexplained {self.left:.1e}"

    def found_out(self) -> str:
        """What was not declared, what it leaves, and how to declare it."""
        of = f" of {self.of:.1e}" if self.of else ""
        return f"{self.words}, left unexplained {self.left:.1e}{of}; declare it: {self.option}"

    def beside(self, why: str) -> str:
        """What is said of a wrong point behind it, of which `why` is known."""
        return why if self.declared else f"{why}; behind arithmetic: {self.found_out()}"

    @property
    def proved(self) -> bool:
        """Whether nothing is left that a bug might be, or it is declared."""
        return True

    @property
    def known(self) -> str:
        """Since when it is known."""
        return "declared" if self.declared else "found out, not declared"


@dataclass
class UnprovedCosts(ArithmeticCosts):
    """Roundings that put a right program as far off as a tensor is, behind which a bug may stand.

    Attributes:
        record: the point whose recording tells.
        others: what else does, in words with its costs.
        theirs, rows: how many rows are explained, and of how many.
        likely: whether the errors lie as these roundings put them; shown: whether single steps have shown
            that they are made.
    """

    record: str = ""
    others: Sequence[str] = ()
    theirs: int = 0
    rows: int = 0
    likely: bool = False
    shown: bool = False

    @property
    def proved(self) -> bool:
        """Whether nothing is left that a bug might be."""
        return False

    @property
    def known(self) -> str:
        """Nothing is, but what single steps have shown."""
        return "found out, not declared, not proved" if self.shown else "not declared, not proved"

    def sentence(self) -> str:
        """How far it puts a right program."""
        return f"{self.words} would cost {self.costs:.1e} ({self.costs_at}), of {self.of:.1e}"

    def found_out(self) -> str:
        """The same, and what tells."""
        told = "which halves where that is" if self.shown else "which tells"
        tell = f"record {self.record}, {told}, or declare it: {self.option}"
        if not self.likely:
            few = ", or ".join((f"{self.words} ({self.costs:.1e})", *self.others))
            hides = f"which would hide a bug that is smaller: {tell}"
            return f"as far from exact as a right program would be with {few}, {hides}"
        row = "row" if self.theirs == 1 else "rows"
        shown = f", which explain {self.theirs} {row} of {self.rows} whole" if self.theirs else ""
        far = f"{self.of:.1e}, and they cost {self.costs:.1e}"
        hides = "a bug smaller than that can't be seen"
        return f"as far from exact as {self.words} would be{shown}: {far}; {hides}; {tell}"

    def beside(self, why: str) -> str:
        """What is likely is said alone: what a bug explains of roundings is chance."""
        return self.found_out() if self.likely else f"{why}; {self.found_out()}"
