"""What each checkpoint module says of itself, read from its source and not by importing it.

A module of `checkpoints` imports torch, which takes seconds; a page of text need not wait for it. So the
record `CHECKPOINT` is parsed: what a page shows of it must be written there as plain values.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llama_ckpt.shadowing import check_checkpoints

__all__ = ["CheckpointSource", "checkpoint_sources", "read_source"]

SHOWN = ("id", "title", "stands_on", "points", "max_abs", "torch_function", "mistakes")
"""The fields of the record that pages show; `error_from` too, which may be left out."""


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint as its source describes it.

    Attributes:
        id, title, stands_on, points, max_abs, torch_function, mistakes, error_from: as in
            `points.Checkpoint`.
        module: the module's name, "c01b_rope".
        doc: the module's docstring, without indentation.
        function: the name of the layer function.
        signature: its parameters and their defaults, without types: "(q, k, tap=None)".
        function_doc: its docstring, without indentation.
        functions: the names of all public functions that the module defines.
    """

    id: str
    title: str
    stands_on: tuple[str, ...]
    points: tuple[str, ...]
    max_abs: float
    torch_function: str
    mistakes: tuple[str, ...]
    error_from: Mapping[str, str]
    module: str
    doc: str
    function: str
    signature: str
    function_doc: str
    functions: tuple[str, ...]


@cache
def checkpoint_sources() -> tuple[CheckpointSource, ...]:
    """Every checkpoint, in the ladder's order.

    Raises:
        OptionError: another package called `checkpoints` stands before ours on the path.
        ValueError: a module whose `CHECKPOINT` cannot be read without running it.
    """
    check_checkpoints()
    spec = importlib.util.find_spec("checkpoints")
    assert spec is not None and spec.submodule_search_locations is not None  # it was found just now
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    paths = sorted(path for folder in folders for path in folder.glob("c[0-9][0-9]*.py"))
    return tuple(read_source(path) for path in paths)


def read_source(path: Path) -> CheckpointSource:
    """The checkpoint that one module describes.

    Raises:
        ValueError: there is no `CHECKPOINT = Checkpoint(…)`, or a field that pages show is no plain value.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    given = _record(tree, path)
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    name = ast.unparse(given["function"])
    if name not in defined:
        raise ValueError(f"{path.name}: CHECKPOINT names {name}, wanted a function that this module defines")
    return CheckpointSource(
        module=path.stem,
        doc=ast.get_docstring(tree) or "",
        function=name,
        signature=str(inspect.Signature(list(_parameters(defined[name].args)))),
        function_doc=ast.get_docstring(defined[name]) or "",
        functions=tuple(one for one in defined if one != "cases" and not one.startswith("_")),
        error_from=_plain(given["error_from"], "error_from", path) if "error_from" in given else {},
        **{field: _plain(given[field], field, path) for field in SHOWN},
    )


def _record(tree: ast.Module, path: Path) -> dict[str, ast.expr]:
    """The arguments of `CHECKPOINT = Checkpoint(…)`, by keyword."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            if [ast.unparse(target) for target in node.targets] == ["CHECKPOINT"]:
                given = {one.arg: one.value for one in node.value.keywords if one.arg}
                missing = [field for field in ("function", *SHOWN) if field not in given]
                if missing:
                    raise ValueError(f"{path.name}: CHECKPOINT lacks {', '.join(missing)}, as keywords")
                return given
    raise ValueError(f"{path.name} has no CHECKPOINT = Checkpoint(…)")


def _plain(value: ast.expr, field: str, path: Path) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        raise ValueError(
            f"{path.name}: CHECKPOINT's {field} is {ast.unparse(value)}, wanted plain values, "
            "since pages are made without running the module"
        ) from None


class _Written:
    """A default value, shown as it is written in the source."""

    def __init__(self, value: ast.expr) -> None:
        self.text = ast.unparse(value)

    def __repr__(self) -> str:
        return self.text


def _parameters(found: ast.arguments) -> Iterator[inspect.Parameter]:
    """Names, kinds and defaults; what the types are stands in the docstring."""
    kinds = inspect.Parameter
    positional = [*found.posonlyargs, *found.args]
    without = len(positional) - len(found.defaults)
    for i, one in enumerate(positional):
        kind = kinds.POSITIONAL_ONLY if i < len(found.posonlyargs) else kinds.POSITIONAL_OR_KEYWORD
        default = kinds.empty if i < without else _Written(found.defaults[i - without])
        yield kinds(one.arg, kind, default=default)
    if found.vararg:
        yield kinds(found.vararg.arg, kinds.VAR_POSITIONAL)
    for one, value in zip(found.kwonlyargs, found.kw_defaults, strict=True):
        yield kinds(one.arg, kinds.KEYWORD_ONLY, default=kinds.empty if value is None else _Written(value))
    if found.kwarg:
        yield kinds(found.kwarg.arg, kinds.VAR_KEYWORD)
