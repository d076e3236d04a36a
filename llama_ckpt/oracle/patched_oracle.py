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
from types import FunctionType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.oracle import run_oracle
from llama_ckpt.oracle.functions import oracle_modules
from llama_ckpt.points import Case

__all__ = ["RIGHT", "DoesNotApply", "Patch", "PatchedOracle", "answers"]

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
                self._namespace[known] = _bound(patch, right)

    def __getattr__(self, name: str) -> Any:
        for known in (name, "_" + name):
            if not name.startswith("_") and known in self._namespace:
                return self._namespace[known]
        raise AttributeError(f"the oracle has no function {name!r}")

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


def _bound(patch: Patch, right: PatchedOracle | None) -> Callable[..., Any]:
    knows_magnitudes = "magnitude" in inspect.signature(patch).parameters

    def replacement(*args: Any, **options: Any) -> Any:
        magnitude = 1.0 if knows_magnitudes else options.pop("magnitude", 1.0)
        made = patch(right, *args, **options)
        # A rotation that says nothing of a magnitude is wrong in another way: it gets the right one.
        return made if magnitude == 1.0 else tuple(magnitude * np.asarray(one) for one in made)

    return replacement


RIGHT = PatchedOracle({})
"""The oracle as it is, in the same dress."""
