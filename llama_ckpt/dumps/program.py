"""What is known of a program that somebody else wrote: its submodules' paths, and which point each is."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_ckpt.dumps import programs

__all__ = ["Program", "known_programs"]


@dataclass(frozen=True)
class Program:
    """A program whose modules can be recorded without a mapping.

    Attributes:
        name: as people call it.
        mapping: as `hooks` takes it; every path must be there.
        instead: for paths that some versions have in place of others: each a mapping of which the first
            that fits is taken too.
    """

    name: str
    mapping: Mapping[str, str | Sequence[str]]
    instead: tuple[tuple[Mapping[str, str | Sequence[str]], ...], ...] = ()

    def mapping_for(self, has: Any) -> dict[str, str | Sequence[str]] | None:
        """The mapping of the version at hand; None where it is another program.

        Args:
            has: says of a path whether there is such a submodule.
        """
        if not all(has(path) for path in self.mapping):
            return None
        found = dict(self.mapping)
        for choices in self.instead:
            fitting = next((one for one in choices if all(has(path) for path in one)), None)
            if fitting is None:
                return None
            found |= fitting
        return found


def known_programs() -> Iterator[tuple[str, Program]]:
    """Every known program by its file's name, in the order of these."""
    for found in sorted(pkgutil.iter_modules(programs.__path__), key=lambda each: each.name):
        module = importlib.import_module(f"{programs.__name__}.{found.name}")
        yield found.name, module.PROGRAM
