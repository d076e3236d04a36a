"""What a program's roundings cost, point by point, and what they leave unexplained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_ckpt.arithmetic.profiles import PROFILES

__all__ = ["ArithmeticCosts"]


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
        cost = f"costs {self.costs:.1e} ({self.costs_at})" if self.costs_at else "costs nothing"
        return f"{self.name} {cost}, left unexplained {self.left:.1e}"

    def found_out(self) -> str:
        """What was not declared, what it leaves, and how to declare it."""
        return f"{self.words}, left unexplained {self.left:.1e}; declare it: {self.option}"
