"""What the oracle's functions call, read from their source, so that nobody keeps a list of it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from types import FunctionType
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
def _functions() -> dict[str, FunctionType]:
    return {
        name.removeprefix("_"): value
        for module in (*oracle_modules(), run_oracle)
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__module__ == module.__name__
    }


def _called_by(name: str) -> Iterator[str]:
    """In the order in which they run: in `argmax(last_logits(x))` the inner one comes first."""
    function = _functions().get(name)
    if function is not None:
        own = inspect.signature(function).parameters  # `argmax` has a parameter called `logits`
        for used in _names(ast.parse(inspect.getsource(function)).body[0]):
            if used not in own and used.removeprefix("_") in _functions():
                yield used.removeprefix("_")


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
