"""The programs by their keys: each a module of `programs/` with a `PROGRAM`, found by its file's name.

A driver imports its framework inside its functions, so that all of them can be listed anywhere.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

from tools.other_llamas.job import Program

__all__ = ["CHEAPEST", "keys", "program"]

CHEAPEST = ("transformers_eager", "transformers_sdpa")
"""What continuous integration runs: what they need is small, or here already."""


def keys() -> list[str]:
    """Of every program, sorted."""
    folder = Path(__file__).parent / "programs"
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


@cache
def program(key: str) -> Program:
    """The program of a key.

    Raises:
        SystemExit: there is no such key.
    """
    if key not in keys():
        raise SystemExit(f"no program {key!r}: there are {', '.join(keys())}")
    found = import_module(f"tools.other_llamas.programs.{key}").PROGRAM
    assert isinstance(found, Program), key
    return found
