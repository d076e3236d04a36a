"""What the catalogue knows of a fault on ranks: what it is, where it must be seen, what must be said."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from llama_ckpt.mutants.ranks.port import RankPort

__all__ = ["RankBug", "RankFamily", "RightRanks"]

Program = TypeVar("Program", bound=type[RankPort])


@dataclass(frozen=True)
class RankBug:
    """A fault.

    Attributes:
        name: short, unique. fault: a clause.
        program: a port that has it. model: what it is run on; tokens: how many.
        at: the point where it must be seen first. ranks: those that must be called wrong.
        right: what a right name has, a regular expression.
        reports: where somebody reported it; "" where nobody is known to.
        plan: lines of a plan; "" for the default.
    """

    name: str
    fault: str
    program: type[RankPort]
    at: str
    ranks: tuple[int, ...]
    right: str
    model: str = "plain"
    tokens: int = 9
    reports: str = ""
    plan: str = ""


@dataclass(frozen=True)
class RightRanks:
    """A right program on ranks; attributes as of a `RankBug`."""

    name: str
    sentence: str
    program: type[RankPort]
    model: str = "plain"
    tokens: int = 9
    plan: str = ""


@dataclass
class RankFamily:
    """Faults and right programs in the order in which they are written."""

    bugs: list[RankBug] = field(default_factory=list)
    right: list[RightRanks] = field(default_factory=list)

    def bug(
        self,
        fault: str,
        *,
        at: str,
        ranks: tuple[int, ...],
        right: str,
        model: str = "plain",
        reports: str = "",
        plan: str = "",
    ) -> Callable[[Program], Program]:
        """Enter the port below as a fault."""

        def entered(program: Program) -> Program:
            self.bugs.append(
                RankBug(_spelled(program), fault, program, at, ranks, right, model, 9, reports, plan)
            )
            return program

        return entered

    def rightly(
        self, sentence: str, *, model: str = "plain", tokens: int = 9, plan: str = ""
    ) -> Callable[[Program], Program]:
        """Enter the port below as a right program."""

        def entered(program: Program) -> Program:
            self.right.append(RightRanks(_spelled(program), sentence, program, model, tokens, plan))
            return program

        return entered


def _spelled(program: type[RankPort]) -> str:
    """ReducedTwice → reduced-twice"""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", program.__name__).lower()
