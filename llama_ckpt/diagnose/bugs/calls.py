"""What the oracle's functions call, read from their source, so that nobody keeps a list of it."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

from llama_ckpt.oracle import run_oracle
from llama_ckpt.oracle.functions import oracle_modules

__all__ = ["reached_from"]


@cache
def reached_from(function: str) -> tuple[str, ...]:
    """A function of the oracle and all that it calls, directly or not.

    Args:
        function: its name; a private helper's has no underscore here, as in `patched_oracle`. What the
            oracle does not have reaches itself alone.
    """
    reached = [function]
    for name in reached:
        reached += [called for called in _called_by(name) if called not in reached]
    return tuple(reached)


@cache
def _tree(module: ModuleType) -> dict[str, ast.FunctionDef]:
    """A module's functions, as they are written."""
    body = ast.parse(inspect.getsource(module)).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


@cache
def _functions() -> dict[str, FunctionType]:
    return {
        name.removeprefix("_"): value
        for module in (*oracle_modules(), run_oracle)
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__module__ == module.__name__
    }


@cache
def _called_by(name: str) -> tuple[str, ...]:
    """In the order in which they run: in `argmax(last_logits(x))` the inner one comes first."""
    function = _functions().get(name)
    if function is None:
        return ()
    own = inspect.signature(function).parameters  # `argmax` has a parameter called `logits`
    used = _names(_tree(sys.modules[function.__module__])[function.__name__])
    called = (one.removeprefix("_") for one in used if one not in own)
    return tuple(dict.fromkeys(one for one in called if one in _functions()))


def _names(node: Any) -> Iterator[str]:
    """The names that a tree reads, a call's arguments before what is called."""
    if isinstance(node, ast.Name):
        yield node.id
        return
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call):
        children = [*children[1:], node.func]
    for child in children:
        yield from _names(child)
