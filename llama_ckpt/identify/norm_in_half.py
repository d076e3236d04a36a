"""Norms of programs in half precision, number by number: a sum of squares made in it, or another epsilon.

What half precision leaves of each number hides much: within it a wrong divisor, epsilon or width look alike.
But the program rounds to numbers that can be repeated, and of what made them nearly all come out equal.
numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.floats import FLOATS
from llama_ckpt.arithmetic.formats import rounded

__all__ = ["norms_in_half"]

Array: TypeAlias = NDArray[Any]

HALVES: Final = ("bfloat16", "float16")
"""Each number of bfloat16 of a usual size is one of float16 too."""

EQUAL: Final = 0.9
"""Of the numbers so many are equal: a float32 sum before the last rounding may fall the other way."""

EPSILONS: Final = tuple(digit * 10.0**-power for power in range(2, 13) for digit in (1, 2, 3, 5))
"""Epsilons that people write."""

STEPS: Final = 8
"""A sum in half precision is off by no more steps of it: of one mean, or of one root."""

FIRST: Final = 64
"""So many rows are looked at first."""

Found: TypeAlias = tuple[str, str, Array, Mapping[str, Any]]
"""A kind, words, what comes out, and the numbers in it by name."""

Finish: TypeAlias = Callable[[Array, Array], Array]
"""Rows, and their factors, to what comes out."""


def norms_in_half(
    x: Array, y: Array, weight: Array, eps: float, features: NDArray[np.int64]
) -> Iterator[Found]:
    """What gives nearly every number of a norm's result: at most one.

    Args:
        x: what was normalized, `[n, width]`; y: some features of what came out, `[n, features]`.
        weight: `[width]`; eps: the right one.
    """
    name = next((name for name in HALVES if np.array_equal(rounded(y, name), y)), None)
    if name is None or not y.size:
        return
    finishes = _finishes(weight, name, features)
    squares = np.mean(x * x, axis=1)
    most = max(_equal(finish(x, 1 / np.sqrt(squares + eps)), y) for finish in finishes)  # right as it is
    best: Found | None = None
    # A number for all rows goes before one of each row's own that gives as many.
    for one in (*_with_epsilons(x, y, squares, eps, finishes), *_in(name, x, y, eps, finishes)):
        if (equal := _equal(one[2], y)) > most and equal >= EQUAL:
            most, best = equal, one
    if best is not None:
        yield best


def _with_epsilons(
    x: Array, y: Array, squares: Array, eps: float, finishes: Sequence[Finish]
) -> Iterator[Found]:
    for finish in finishes:
        for other in EPSILONS:
            factor = 1 / np.sqrt(squares + other)
            if other != eps and _equal(finish(x[:FIRST], factor[:FIRST]), y[:FIRST]) >= EQUAL:
                words = f"the norm's epsilon is {other:.3g} instead of {eps:.3g}"
                yield "norm.epsilon", words, finish(x, factor), {"epsilon": other}


def _in(name: str, x: Array, y: Array, eps: float, finishes: Sequence[Finish]) -> Iterator[Found]:
    """With its sum of squares made in a half precision."""
    for finish in finishes:
        for words, factors in _sums_in_half(np.mean(x * x, axis=1), eps, name):
            few = _nearest(x[:FIRST], y[:FIRST], [one[:FIRST] for one in factors], finish)
            if _equal(few, y[:FIRST]) >= EQUAL:
                words = f"the norm's {words} made in {name}, where float32 is wanted"
                yield "norm.rounded", words, _nearest(x, y, factors, finish), {}


def _finishes(weight: Array, name: str, features: NDArray[np.int64]) -> tuple[Finish, Finish]:
    """Rows times factors and the weight: each step rounded, as eager programs do it, or the result alone."""

    def eager(x: Array, factor: Array) -> Array:
        scaled = rounded(x[:, features] * factor[:, None], name)
        return rounded(scaled * rounded(weight[features], name), name)

    def fused(x: Array, factor: Array) -> Array:
        return rounded(x[:, features] * factor[:, None] * weight[features], name)

    return eager, fused


def _sums_in_half(squares: Array, eps: float, name: str) -> Iterator[tuple[str, list[Array]]]:
    """Factors that a sum in half precision may have come to, `[n]` each: it is off by a few steps.

    In which order it was added up does not matter so: what it was rounded to in the end shows in each row.
    """
    steps = range(-STEPS, STEPS + 1)
    root = 1 / np.sqrt(squares + eps)
    yield "sum of squares and its root are", [_further(root, by, name) for by in steps]
    means = [_further(squares, by, name) for by in steps]
    yield "mean of squares is", [1 / np.sqrt(np.maximum(mean, 0) + eps) for mean in means]


def _further(x: Array, by: int, name: str) -> Array:
    """Numbers of a format some steps further on."""
    nearest = rounded(x, name)
    _, exponent = np.frexp(nearest)
    form = FLOATS[name]
    step = np.ldexp(1.0, np.maximum(exponent - form.digits, form.smallest))
    return rounded(nearest + by * step, name)


def _nearest(x: Array, y: Array, factors: Sequence[Array], finish: Finish) -> Array:
    """What comes out with the factor of each row that gives most of its numbers."""
    best, most = np.zeros_like(y), np.full(len(y), -1.0)
    for factor in factors:
        made = finish(x, factor)
        equal = np.mean(made == y, axis=1)
        best, most = np.where((equal > most)[:, None], made, best), np.maximum(equal, most)
    return best


def _equal(made: Array, y: Array) -> float:
    return float(np.mean(made == y))
