"""Hooks on a torch module's submodules, which show what goes in and what comes out.

A mapping says which submodule's output is which point:

    "model.norm": "output_norm"                             # {N} stands for a block's number, in both
    "layers.{N}.wo:input": "blk.{N}.attn_context"           # `:input`: what goes in
    "layers.{N}.experts:input.2": "blk.{N}.ffn_weights"     # its third argument
    "layers.{N}.wqkv": "blk.{N}.q blk.{N}.k blk.{N}.v"      # one output, side by side in its last axis
    "layers.{N}.norm": ["blk.{N}.attn_norm", "blk.{N}.ffn_norm"]   # called twice: in this order

One module that stands in several places, as blocks that share theirs, is numbered by its calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

from llama_ckpt.dumps.recorder import check_point
from llama_ckpt.errors import OptionError, ShapeError

__all__ = ["BLOCK", "COMPILED", "Mapped", "Show", "hooks", "places", "submodules"]

BLOCK = "{N}"
INPUT = re.compile(r":input(?:\.(\d+))?$")
"""Says that what goes in is meant: the first argument, or the one with this number."""

COMPILED = "_orig_mod"
"""Where `torch.compile` keeps the module that it was given."""

Mapped: TypeAlias = "Mapping[str, str | Sequence[str]]"
Show: TypeAlias = Callable[[str, Tensor], None]
"""Gets the points, with blanks between where they lie side by side, and the tensor."""


def submodules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every submodule by each of its paths, with the wrappers of `torch.compile` left out of them."""
    for name, submodule in module.named_modules(remove_duplicate=False):
        yield ".".join(part for part in name.split(".") if part != COMPILED), submodule


def places(module: nn.Module, path: str) -> list[tuple[nn.Module, str | None]]:
    """The submodules that a path names, each with its block's number as it is written."""
    pattern = re.escape(INPUT.sub("", path)).replace(re.escape(BLOCK), r"([0-9]{1,9})", 1)
    found: dict[str, tuple[nn.Module, str | None]] = {}
    for name, submodule in submodules(module):
        if match := re.fullmatch(pattern, name):  # the wrapper comes before what it wraps, which is wanted
            found[name] = submodule, match.group(1) if match.groups() else None
    return list(found.values())


@contextmanager
def hooks(module: nn.Module, mapping: Mapped, show: Show) -> Iterator[None]:
    """While it lasts, every call of a mapped submodule is shown.

    Raises:
        OptionError: a path or a point that there is not. ShapeError: a submodule that is called more often
            than the mapping has points for it.
    """
    handles = []
    try:
        for path, points in mapping.items():
            for submodule, names in _named(module, path, points):
                given = INPUT.search(path)
                look = _Look(names, show, int(given.group(1) or 0) if given else 0)
                if given:
                    handles.append(submodule.register_forward_pre_hook(look.before, with_kwargs=True))
                else:
                    handles.append(submodule.register_forward_hook(look.after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _named(
    module: nn.Module, path: str, points: str | Sequence[str]
) -> Iterator[tuple[nn.Module, list[str]]]:
    """Each submodule of a path once, with the points of its calls in their order."""
    by_call = [points] if isinstance(points, str) else list(points)
    for point in by_call:
        _check(path, point)
    found = places(module, path)
    if not found:
        raise OptionError("mapping", got=path, wanted="the path of a submodule, {N} for a block's number")
    calls: dict[int, tuple[nn.Module, list[str]]] = {}
    for submodule, number in found:
        names = [point if number is None else point.replace(BLOCK, number) for point in by_call]
        calls.setdefault(id(submodule), (submodule, []))[1].extend(names)
    yield from calls.values()


def _check(path: str, point: str) -> None:
    for one in point.split() or [point]:
        if path.count(BLOCK) != one.count(BLOCK) or path.count(BLOCK) > 1:
            raise OptionError("mapping", got=f"{path}: {one}", wanted="{N} once in both, or in neither")
        check_point(one.replace(BLOCK, "0"))


class _Look:
    """The hooks of one submodule, which count its calls; `argument`: which goes in."""

    def __init__(self, names: Sequence[str], show: Show, argument: int = 0) -> None:
        self.names, self.show, self.argument, self.calls = names, show, argument, 0

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        self._take(given[self.argument] if self.argument < len(given) else None)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._take(output)

    def _take(self, value: Any) -> None:
        if self.calls >= len(self.names):
            what, wanted = self.names[-1], "one: a single pass over the prompt"
            raise ShapeError(what, got="two tensors in one call", wanted=wanted)
        if isinstance(value, Mapping):
            value = value.get("logits", next(iter(value.values()), None))
        if isinstance(value, tuple | list) and value:
            value = value[0]
        name = self.names[self.calls]
        if not isinstance(value, Tensor):
            raise ShapeError(f"what {name} is recorded from", got=type(value).__name__, wanted="a tensor")
        self.calls += 1
        self.show(name, value)
