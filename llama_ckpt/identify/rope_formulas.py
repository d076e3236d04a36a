"""Rotations whose formula is another: signs, a feature that is overwritten too early, half of it left out.

They keep no lengths, so that no angles explain them; each is made of the right angles and compared. So is a
table that is turned on in float32, each position's from the one before: it drifts. numpy only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.identify.turns import Layout, layouts
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.matching import passes

__all__ = ["FORMULAS", "formula_guesses"]

Array: TypeAlias = NDArray[Any]
Formula: TypeAlias = Callable[[Array, Array, Array, Array], tuple[Array, Array]]

FURTHEST = 1 << 16
"""Up to this position a table that is turned on is made: it has a row for each."""

DRIFTS = "RoPE's cosines and sines are turned on from position to position in float32, and drift"


def _overwritten(a: Array, b: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    first = a * cos - b * sin
    return first, first * sin + b * cos


def _overwritten_back(a: Array, b: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    second = a * sin + b * cos
    return a * cos - second * sin, second


def _added(a: Array, b: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    return a * cos + b * sin, a * sin + b * cos


def _changed_places(a: Array, b: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    return a * sin + b * cos, a * cos - b * sin


FORMULAS: tuple[tuple[str, Formula], ...] = (
    ("both features of a pair add the sine's part: a cos + b sin, a sin + b cos", _added),
    ("both features of a pair subtract the sine's part", lambda a, b, c, s: (a * c - b * s, b * c - a * s)),
    ("the first feature of a pair is overwritten before the second is made of it", _overwritten),
    ("the second feature of a pair is overwritten before the first is made of it", _overwritten_back),
    ("only the cosine's part of a turn is taken", lambda a, b, c, s: (a * c, b * c)),
    ("the two features of a pair change places as they are turned", _changed_places),
    ("the first feature of a pair alone is turned", lambda a, b, c, s: (a * c - b * s, b)),
    ("the second feature of a pair alone is turned", lambda a, b, c, s: (a, a * s + b * c)),
)
"""Of the features a and b of a pair, the cosine and the sine."""


CODE = "the lines of the rotation itself"


def formula_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where q_rope or k_rope is the first wrong tensor."""
    found = (asked.of(point) for point in ("q_rope", "k_rope"))
    wrong = [one for one in found if one is not None and not passes(one.x, one.o, one.limit, one.mask)]
    if not wrong or any(np.shape(one.x) != np.shape(one.o) for one in wrong):
        return
    given = asked.given
    angles = np.asarray(given["positions"], np.float64)[:, None] * np.asarray(
        given["frequencies"], np.float64
    )
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    whole = [one for one in layouts(2 * angles.shape[1]) if len(one.a) == angles.shape[1]]
    only = "" if len(wrong) == 2 else f"in {wrong[0].name.rpartition('.')[2][0]} only: "
    for layout in whole:
        for words, formula in FORMULAS:
            made = {one.name: _made(one, asked, layout, formula, cos, sin) for one in wrong}
            if all(_near(one, made[one.name]) for one in wrong):
                said = f"{only}{', and '.join(filter(None, (layout.words, words)))}"
                yield Guess(
                    "rope.formula", said, made, 1 + bool(layout.words), code="the rotation's own lines"
                )
    yield from _turned_on(wrong, asked, only)


def _turned_on(wrong: Sequence[Evidence], asked: Asked, only: str) -> Iterator[Guess]:
    """Each position's cosines and sines as the one before's, turned by one step."""
    at = np.asarray(asked.given["positions"], np.int64)
    frequencies = np.asarray(asked.given["frequencies"], np.float64)
    if not at.size or at.min() < 0 or at.max() > FURTHEST:
        return
    turns, step = np.ones((int(at.max()) + 1, len(frequencies)), np.complex64), np.exp(1j * frequencies)
    for before, after in itertools.pairwise(turns):
        np.multiply(before, step.astype(np.complex64), out=after)
    table = turns[at][:, None].astype(np.complex128)
    pairs = next(layouts(2 * len(frequencies)))
    made = {one.name: _made(one, asked, pairs, _turn, table.real, table.imag) for one in wrong}
    if all(_near(one, made[one.name], 0.5) for one in wrong):
        code = "a table by repeated multiplication; take the cosine and sine of each angle"
        yield Guess("rope.drift", only + DRIFTS, made, 1, code=code)


def _turn(a: Array, b: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    return a * cos - b * sin, a * sin + b * cos


def _made(one: Evidence, asked: Asked, layout: Layout, formula: Formula, cos: Array, sin: Array) -> Array:
    x = np.asarray(asked.given[one.name.rpartition(".")[2][0]], np.float64) * asked.given.get(
        "magnitude", 1.0
    )
    made = np.array(x)
    made[..., layout.a], made[..., layout.b] = formula(x[..., layout.a], x[..., layout.b], cos, sin)
    return made


def _near(one: Evidence, made: Array, share: float = 0.1) -> bool:
    x, o = np.asarray(one.x, np.float64), np.asarray(one.o, np.float64)
    return bool(np.linalg.norm(x - made) < share * np.linalg.norm(x - o))
