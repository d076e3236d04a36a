"""The catalogue of bugs: one module a family, each with its `BUGS`; found by their names, listed nowhere.

A wrong program is the oracle with one function replaced. `candidates(function)` are those that can show
in a call of that function: a wrong `rope` shows in `rope`, in `block` and in `logits`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from llama_ckpt.diagnose.bugs.calls import reached_from
from llama_ckpt.diagnose.bugs.record import Bug

__all__ = ["Bug", "candidates", "catalogue", "reached_from"]


@cache
def catalogue() -> tuple[Bug, ...]:
    """Every bug, family by family in the order of the ladder."""
    modules = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name.startswith("b"))
    families = [importlib.import_module(f"{__name__}.{name}").BUGS for name in modules]
    return tuple(bug for family in families for bug in family)


@cache
def candidates(function: str, passed: tuple[str, ...] = ()) -> tuple[Bug, ...]:
    """The bugs that can show in a call of the oracle's `function`, those of the function itself first.

    Args:
        function: its name in the oracle, or "tokenize" or "generate".
        passed: ids of checkpoints that passed, whose bugs it cannot be.
    """
    reached = reached_from(function)
    found = [bug for bug in catalogue() if bug.function in reached and bug.checkpoint not in passed]
    return tuple(sorted(found, key=lambda bug: reached.index(bug.function)))
