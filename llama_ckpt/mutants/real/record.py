"""What the corpus knows of a fault: who reported it, what it is, where it must be seen, what must be said."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from llama_ckpt.mutants.real.port import Port

__all__ = ["DEFAULT_PROMPTS", "EVERY_MODEL", "Family", "Prompt", "RealBug", "RightPort"]

Program = TypeVar("Program", bound=type[Port])


@dataclass(frozen=True)
class Prompt:
    """How a program is run.

    Attributes:
        n: tokens. first: the position of the first.
        n_pad: rows of padding on the left, which the dump leaves out.
        calls: how many tokens each call takes; all in one if empty.
    """

    n: int
    first: int = 0
    n_pad: int = 0
    calls: tuple[int, ...] = ()


DEFAULT_PROMPTS = (Prompt(9), Prompt(37))
EVERY_MODEL = ("embedded", "grouped")
"""Where nothing else is needed: the embedded model, and a small seeded one with grouped heads."""


@dataclass(frozen=True)
class RealBug:
    """A fault that somebody reported.

    Attributes:
        name: short, unique.
        reports: repository and number of each, the first leads.
        fault: what the program does, a clause.
        program: a port that has it.
        at: the first point where it must be seen, by its full name; derived from the fault. More than one
            name where it depends on the prompt.
        right: what a right name has, a regular expression. wrong: what would be a wrong name.
        models: those that can show it. prompts: the same.
        needs_run: "several calls" or "ranks" where one call of one rank does not show it; "" else.
        dtype: the precision that its dump declares; None: as it is stored, float32.
        late: written when the identifiers were finished, for the figures apart.
    """

    name: str
    reports: tuple[str, ...]
    fault: str
    program: type[Port]
    at: tuple[str, ...]
    right: str
    wrong: str = ""
    models: tuple[str, ...] = EVERY_MODEL
    prompts: tuple[Prompt, ...] = DEFAULT_PROMPTS
    needs_run: str = ""
    dtype: str | None = None
    late: bool = False


@dataclass(frozen=True)
class RightPort:
    """A right program, made of the port as the faults are.

    Attributes:
        name, sentence: what it does otherwise.
        program, models, prompts, dtype: as of a `RealBug`.
    """

    name: str
    sentence: str
    program: type[Port]
    models: tuple[str, ...] = EVERY_MODEL
    prompts: tuple[Prompt, ...] = DEFAULT_PROMPTS
    dtype: str | None = None


@dataclass
class Family:
    """The faults of one kind of step, and right programs made in the same way.

    Attributes:
        name: what they are about.
        bugs, right: in the order in which they are written.
    """

    name: str
    late: bool = False
    bugs: list[RealBug] = field(default_factory=list)
    right: list[RightPort] = field(default_factory=list)

    def bug(
        self,
        reports: str,
        fault: str,
        *,
        at: str,
        right: str,
        wrong: str = "",
        models: tuple[str, ...] = EVERY_MODEL,
        prompts: tuple[Prompt, ...] = DEFAULT_PROMPTS,
        needs_run: str = "",
        dtype: str | None = None,
    ) -> Callable[[Program], Program]:
        """Enter the port below as a fault; the arguments are those of `RealBug`, names parted by spaces."""

        def entered(program: Program) -> Program:
            self.bugs.append(
                RealBug(
                    _spelled(program),
                    tuple(reports.split()),
                    fault,
                    program,
                    tuple(at.split()),
                    right,
                    wrong,
                    models,
                    prompts,
                    needs_run,
                    dtype,
                    self.late,
                )
            )
            return program

        return entered

    def rightly(
        self,
        sentence: str,
        *,
        models: tuple[str, ...] = EVERY_MODEL,
        prompts: tuple[Prompt, ...] = DEFAULT_PROMPTS,
        dtype: str | None = None,
    ) -> Callable[[Program], Program]:
        """Enter the port below as a right program."""

        def entered(program: Program) -> Program:
            self.right.append(RightPort(_spelled(program), sentence, program, models, prompts, dtype))
            return program

        return entered


def _spelled(program: type[Port]) -> str:
    """PositionsInBfloat16 → positions-in-bfloat16"""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", program.__name__).lower()
