"""The oracle with some of its functions replaced: what a program with that bug would compute.

The oracle itself is never changed. Its functions are made anew over a namespace of their own, in which
a name stands for something else, so that a wrong `rope` is also the one that `block` and `logits` call.
A patch gets what it replaces as its first argument, `right`. It can be laid over another one: a bug over
float32 sums is a program as it comes from the field, with a bug and with rounding. numpy only.

    wrong = PatchedOracle({"rope": half_split_pairs})
    wrong.rope(q, k, positions, frequencies)
    wrong.logits(token_ids, weights, config=config, positions=positions)     # the whole model with it
    wrong.answers(case)                                                      # every point of a case
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import CodeType, FunctionType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.oracle import run_oracle
from llama_ckpt.oracle.functions import oracle_modules
from llama_ckpt.points import Case

__all__ = ["RARE", "RIGHT", "DoesNotApply", "Patch", "PatchedOracle", "answers", "bound"]

Patch: TypeAlias = Callable[..., Any]
"""A replacement: `right`, a `PatchedOracle`, then the arguments of what it replaces."""


class DoesNotApply(Exception):
    """A bug that cannot be made of these arguments: a wrong group where nothing is grouped."""


class PatchedOracle:
    """The oracle's functions as attributes, those in `patches` replaced.

    `tokenize` and `generate` of `run_oracle` are among them, and the oracle's private helpers, whose
    names here have no underscore: `linear`, `visible`, `sigmoid`, `normalized_exp`, `float64`.

    Args:
        patches: a function's name to what stands in its place.
        base: what is patched; None: the oracle as it is.
    """

    def __init__(self, patches: Mapping[str, Patch], base: PatchedOracle | None = None) -> None:
        self._layers: tuple[tuple[Mapping[str, Patch], PatchedOracle | None], ...] = ()
        if patches:
            base = base or RIGHT
            self._layers = (*base._layers, (patches, base))
        self._namespace = _fresh_namespace()
        for layer, right in self._layers:
            for name, patch in layer.items():
                known = name if name in self._namespace else "_" + name
                assert known in self._namespace, f"the oracle has no function {name!r}"
                self._namespace[known] = bound(patch, right)

    def __getattr__(self, name: str) -> Any:
        for known in (name, "_" + name):
            if not name.startswith("_") and known in self._namespace:
                return self._namespace[known]
        raise AttributeError(f"the oracle has no function {name!r}")

    def without(self, name: str) -> PatchedOracle:
        """The same with one of the oracle's functions as it is, whatever stood in its place."""
        made: PatchedOracle | None = None
        for layer, _ in self._layers:
            made = PatchedOracle({one: patch for one, patch in layer.items() if one != name}, made)
        return made or RIGHT

    def answers(self, case: Case) -> dict[str, NDArray[Any]]:
        """What the case's function returns and shows, by full point name.

        Raises:
            DoesNotApply: the bug cannot be made of these arguments.
        """
        return answers(getattr(self, case.function), case)


def answers(function: Callable[..., Any], case: Case) -> dict[str, NDArray[Any]]:
    """Call a function with a case's arguments; its inner and its returned points by full name.

    Args:
        function: the oracle's, or one like it.
        case: with arguments as the oracle takes them: arrays, not torch tensors.
    """
    return case.run(function, keep=lambda value, where: np.asarray(value))


def _fresh_namespace() -> dict[str, Any]:
    """The oracle's names; its functions look up each other in this very dictionary."""
    first, *others = oracle_modules()
    namespace = {name: value for module in others for name, value in vars(module).items()} | vars(first)
    namespace |= {name: getattr(run_oracle, name) for name in run_oracle.__all__}
    ours = (*(module.__name__ for module in oracle_modules()), run_oracle.__name__)
    for name, value in namespace.items():
        if isinstance(value, FunctionType) and value.__module__ in ours:
            made = FunctionType(value.__code__, namespace, name, value.__defaults__, value.__closure__)
            made.__kwdefaults__ = value.__kwdefaults__
            namespace[name] = made
    return namespace


_ADDED = {"bq": 0, "bk": 1, "bv": 2, "bo": 0, "b_down": 0}
"""A bias, and which of a function's values it is added to."""


def bound(patch: Patch, right: PatchedOracle | None) -> Callable[..., Any]:
    """A wrong function on an oracle, called as the right one is: with what it does not know of as well."""
    known, takes_all = _taken_by(patch)

    def replacement(*args: Any, **options: Any) -> Any:
        rare = (
            {} if takes_all else {name: options.pop(name) for name in list(options) if name in RARE - known}
        )
        return _with_rare(patch(right, *args, **options), rare)

    return replacement


def _taken_by(patch: Patch) -> tuple[frozenset[str], bool]:
    """The names of a function's parameters, and whether it takes any other by name."""
    code = getattr(patch, "__code__", None)
    if code is not None and not hasattr(patch, "__wrapped__"):
        return _taken_by_code(code)  # functions are made anew for each try, of the same few codes
    parameters = inspect.signature(patch).parameters.values()
    return frozenset(one.name for one in parameters), any(one.kind is one.VAR_KEYWORD for one in parameters)


@cache
def _taken_by_code(code: CodeType) -> tuple[frozenset[str], bool]:
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return frozenset(names), bool(code.co_flags & inspect.CO_VARKEYWORDS)


RARE = frozenset({"magnitude", "b_gate", "b_up", *_ADDED})
"""Arguments that a Llama-2 has none of; a wrong function need not know of them."""


def _with_rare(made: Any, rare: Mapping[str, Any]) -> Any:
    """What a wrong function made, with what it does not know of: a Llama-2 has no biases and no magnitude."""
    biases = {name: value for name, value in rare.items() if value is not None and name != "magnitude"}
    if biases.keys() & {"b_gate", "b_up"}:  # they stand in the middle of it
        raise DoesNotApply
    magnitude = rare.get("magnitude", 1.0)
    if not biases and magnitude == 1.0:
        return made
    values = [magnitude * np.asarray(one) for one in (made if isinstance(made, tuple) else (made,))]
    for name, bias in biases.items():
        one = values[_ADDED[name]]
        values[_ADDED[name]] = one + np.asarray(bias).reshape(one.shape[1:])
    return tuple(values) if isinstance(made, tuple) else values[0]


RIGHT = PatchedOracle({})
"""The oracle as it is, in the same dress."""
