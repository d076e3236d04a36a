"""Every public name is listed, typed and documented."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.meta.test_imports import modules

NAMES = [name for name in modules() if not name.endswith("__main__")]


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The functions and classes that a module makes public and defines itself."""
    for name in module.__all__:
        value = getattr(module, name)
        if getattr(value, "__module__", None) == module.__name__:
            yield name, value


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines itself."""
    for name, value in vars(kind).items():
        if not name.startswith("_"):
            if isinstance(value, property):
                yield name, value.fget
            elif isinstance(value, classmethod | staticmethod):
                yield name, value.__func__
            elif inspect.isfunction(value):
                yield name, value


def untyped(function: Any) -> list[str]:
    """The parameters, and `return`, that have no annotation."""
    signature = inspect.signature(function)
    names = [
        n for n, p in signature.parameters.items() if p.annotation is p.empty and n not in ("self", "cls")
    ]
    return names + (["return"] if signature.return_annotation is signature.empty else [])


@pytest.mark.parametrize("name", NAMES)
def test_module_is_documented_and_lists_its_public_names(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"
    assert len(set(module.__all__)) == len(module.__all__), f"{name}.__all__ names something twice"
    for public_name in module.__all__:
        assert hasattr(module, public_name), f"{name}.__all__ names {public_name}, which is not there"


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_documented_and_typed(name: str) -> None:
    for public_name, value in public(importlib.import_module(name)):
        where = f"{name}.{public_name}"
        if inspect.isclass(value):
            assert (value.__doc__ or "").strip(), f"{where} has no docstring"
            for member, function in members(value):
                assert (inspect.getdoc(getattr(value, member)) or "").strip(), (
                    f"{where}.{member}: no docstring"
                )
                assert not untyped(function), f"{where}.{member}: untyped {untyped(function)}"
        elif inspect.isfunction(value):
            assert (value.__doc__ or "").strip(), f"{where} has no docstring"
            assert not untyped(value), f"{where}: untyped {untyped(value)}"


def test_the_test_sees_what_is_missing() -> None:
    def bare(x, *, y: int):
        return x

    assert untyped(bare) == ["x", "return"]
