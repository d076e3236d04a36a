"""Which functions the oracle has: those of `llama`, and those of the modules beside it named `cNN_…`.

A new checkpoint's mathematics may stand in a module of its own, `llama_ckpt/oracle/cNN_name.py`; it is found
by its name, and nothing lists it.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import llama_ckpt.oracle as package
from llama_ckpt.oracle import llama

__all__ = ["oracle_function", "oracle_modules"]


@cache
def oracle_modules() -> tuple[ModuleType, ...]:
    """`llama`, then the others in the order of their names.

    Raises:
        ValueError: two of them define a function of one name.
    """
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if re.match(r"c\d\d", m.name))
    modules = (llama, *(importlib.import_module(f"{package.__name__}.{name}") for name in names))
    homes: dict[str, str] = {}
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                first = homes.setdefault(name, module.__name__)
                if first != module.__name__:  # one namespace holds them all, see patched_oracle
                    raise ValueError(f"{module.__name__} defines {name}, wanted another name: {first} has it")
    return modules


def oracle_function(name: str) -> Callable[..., Any] | None:
    """The oracle's public function of that name; None where it has none."""
    for module in oracle_modules():
        if name in getattr(module, "__all__", ()):
            found: Callable[..., Any] = getattr(module, name)
            return found
    return None
