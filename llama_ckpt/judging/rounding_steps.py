"""The rounding error of each kind of step: `rounding` says what it stands on, and puts them together.

Each function takes float64 arrays, and what the program rounded on the way here where there is such
(`carried`, a deviation of the same shape); it gives the deviation of every element of the result.
Products of squares are taken in float32, since of a deviation two digits count. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.to_precision import to_bfloat16, to_float16

__all__ = [
    "MODE",
    "PRECISIONS",
    "STEEP",
    "SWALLOWED",
    "Precision",
    "angle_error",
    "gated",
    "gated_by_tanh",
    "reached",
    "silu",
    "probabilities",
    "product_deviation",
    "product_terms_of",
    "softmax_shared",
    "sum_deviation",
    "sum_one_by_one",
    "to_half",
    "turned_deviation",
    "turned_most",
]

Array: TypeAlias = NDArray[np.float64]

CHUNKS = 8
"""In how many places a sum's partial sums are looked at."""

TILE, LEAST_TILE = 1 << 16, 128
"""So many sums are looked at together, which stay in a processor's cache; and so many of a row at least."""


@dataclass(frozen=True)
class Precision:
    """What a program of a dtype rounds with.

    Attributes:
        u: of a sum, which is float32 everywhere.
        half: of a result and of a weight, as chance has it; 0.0 in float32, whose results are sums.
        least: below so much a number may be taken for zero, or has no more than this distance to the next.
        root: of a norm's root. Squares in half precision are right in bfloat16 alone: float16 has no room.
        largest: more than that is infinite.
    """

    u: float
    half: float
    least: float
    root: float
    largest: float = np.inf


HALF = 0.75
"""Of the largest that a rounding to half precision may be: few are, and on average they are 0.42 of it."""

PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision(2.0**-24, 0.0, 2.0**-126, 0.0),
    "float16": Precision(2.0**-24, HALF * 2.0**-11, 2.0**-25, 0.0, 65504.0),
    "bfloat16": Precision(2.0**-24, HALF * 2.0**-8, 2.0**-126, 0.7 * 2.0**-8),
}
"""By the name of the dtype."""


def to_half(x: Array, p: Precision) -> Array:
    """In the precision's half, to nearest; what that has no room for stays as it is."""
    rounded = (to_float16 if p.largest < np.inf else to_bfloat16)(x)
    return np.where(np.isfinite(rounded), rounded, x)


def sum_deviation(terms: tuple[Array, Array], n: Any, y: Array, p: Precision) -> Array:
    """Of a sum over n products, one number or one for each row, that comes to y, from `product_terms_of`."""
    norms, partial = terms
    squares = np.asarray(np.square(norms) + np.square(partial), np.float64)
    squares *= (p.u * np.sqrt(n)) ** 2 + p.half**2
    if p.half:
        squares += np.square(p.half * y)
    squares += p.least**2
    return np.asarray(np.sqrt(squares, out=squares))


def product_terms_of(x: Array, w: Any) -> tuple[Array, Array]:
    """Of products `x [n, in]` with `w [out, in]`: their norms and the rms of their partial sums, `[n, out]`.

    A weight in another memory has a method `product_terms` that does this there.
    """
    if hasattr(w, "product_terms"):
        norms, partial = w.product_terms(x, CHUNKS)
        return norms, partial
    return _terms(_in_float32(x), _in_float32(w))


def _terms(x: _Scaled, w: _Scaled) -> tuple[Array, Array]:
    (rows, scale), (matrix, unit) = x, w
    norms, partial = np.empty((2, len(rows), len(matrix)))
    tile = max(LEAST_TILE, TILE // max(1, len(rows)))
    for start in range(0, len(matrix), tile):
        some = slice(start, start + tile)
        norms[:, some], partial[:, some] = _tile(rows, matrix[some])
    scales = scale * unit.T
    norms *= scales
    partial *= scales
    return norms, partial


def _tile(rows: NDArray[np.float32], matrix: NDArray[np.float32]) -> tuple[Any, Any]:
    """Of some outputs the norms and the rms of partial sums, float32."""
    norms = np.sqrt((rows * rows) @ (matrix * matrix).T)
    step = -(-rows.shape[1] // CHUNKS)
    running, squares = np.zeros_like(norms), np.zeros_like(norms)
    for start in range(0, rows.shape[1], step):
        running += rows[:, start : start + step] @ matrix[:, start : start + step].T
        squares += np.square(running)
    return norms, np.sqrt(squares / CHUNKS)


_Scaled: TypeAlias = tuple[NDArray[np.float32], Array]


def _in_float32(x: Any) -> _Scaled:
    """An array for products of which two digits count, and its rows' scales.

    Divided by its largest, a row's squares neither overflow nor vanish, but those below 1e-38 of that one's.
    """
    scale = np.asarray(np.abs(x).max(axis=1, keepdims=True, initial=0.0), np.float64)
    scale = np.where(scale > 0, scale, 1.0)
    return np.asarray(x / scale, np.float32), scale


def product_deviation(
    x: Array, w: Any, y: Array, p: Precision, carried: Array | None = None
) -> tuple[Array, Array | None]:
    """Of y = x w^T: its own rounding, and what a deviation of x comes to in it, None where x has none."""
    through: Array | None = None
    if hasattr(w, "rounding_terms"):
        norms, partial, through = w.rounding_terms(x, CHUNKS, carried)
        terms = norms, partial
    elif hasattr(w, "product_terms"):
        terms = product_terms_of(x, w)
        through = None if carried is None else w.product_terms(carried, 0)[0]
    else:
        # Once for both, and of a file's matrix once for all: it is the largest array here.
        scaled = w.always("float32", lambda: _in_float32(w)) if hasattr(w, "always") else _in_float32(w)
        matrix, unit = scaled
        terms = _terms(_in_float32(x), scaled)
        if carried is not None:
            rows, scale = _in_float32(carried)
            through = np.sqrt((rows * rows) @ (matrix * matrix).T) * (scale * unit.T)
    own = sum_deviation(terms, x.shape[1], y.reshape(len(y), -1), p).reshape(y.shape)
    return own, None if through is None else through.reshape(y.shape)


SUM_OF_SQUARES, DWARFED = 0.3, 0.4
"""Of u sqrt(n): a sum of n positive terms, made one after the other, whose partial sums grow; and what comes
on top where the first term is all of it already."""


def sum_one_by_one(n: Any, largest: Any) -> Any:
    """What a sum of n positive terms is off by, in roundings; largest: the largest term's share of it."""
    return (SUM_OF_SQUARES + DWARFED * largest) * np.sqrt(n)


TURN_ROUNDINGS = 1.25
"""Two products and their sum, and the cosine and the sine that were rounded before."""


def turned_deviation(x: Array, p: Precision, carried: Array | None = None) -> Array:
    """Of heads `[n, heads, head_dim]` turned by RoPE's angles as they are, x before."""
    reach = np.hypot(x[..., 0::2], x[..., 1::2])
    own = TURN_ROUNDINGS * (p.u + p.half) * reach + p.least * (2 + reach)
    if carried is not None:
        own = np.sqrt(own**2 + carried[..., 0::2] ** 2 + carried[..., 1::2] ** 2)
    return _both(own)


def turned_most(x: Array, positions: Any, frequencies: Any) -> tuple[Array, float]:
    """What angles as right programs build them move each element by at most, and the sum of all."""
    even, odd = x[..., 0::2], x[..., 1::2]
    off = angle_error(positions, frequencies)
    # A turn by a little moves a pair (a, b) by (-b, a): in sum over the heads by sqrt(2) of theirs at most.
    lean = np.sqrt(2.0) * np.sum(off * np.hypot(even.sum(axis=1), odd.sum(axis=1)))
    return _both(np.hypot(even, odd) * off[:, None, :]), float(lean)


def _both(pairs: Array) -> Array:
    """A value of each pair for both of its elements."""
    return np.repeat(pairs, 2, axis=-1)


def angle_error(positions: ArrayLike, frequencies: ArrayLike) -> NDArray[np.float64]:
    """By how many radians RoPE's angle may be off in a right program, `[n, pairs]`.

    Position times a float32 frequency: the frequency's rounding and the product's, 2 u of the angle.
    Frequencies multiplied one after the other, as llama.cpp does: u more for each pair before. As a power
    of 2 or e, as many take them: the exponent's roundings, a share of the exponent, are of the frequency.
    The first pair's frequency is 1, or a power of 2 where positions are stretched by one: there is nothing
    to round but where the cosine is taken as a sine, pi/2 further on.
    """
    turns = np.asarray(frequencies, np.float64)
    angle = np.abs(np.asarray(positions, np.float64)[:, None] * turns)
    roundings = 2.0 + np.maximum(np.arange(angle.shape[1]), np.abs(np.log2(turns)))
    if roundings.size and np.frexp(turns[0])[0] == 0.5:
        roundings[0] = 1.0
    return np.asarray(roundings * angle * 2.0**-24)


EXP_ROUNDINGS = 4.0
"""Of exp itself, of the division, and what fast versions of both lose."""

STEEP = 3.0
"""How many deviations of a score, or of a gate, exp is followed for."""

MODE = 5.0
"""What is allowed of what all of a row is off by together: a single number, that no other evens out."""


TRADED = 0.5**0.5
"""The most of a probability's deviation. One key's may go to another, whose value points the other way: twice
this, by the least that a tensor's error may come to of chance, is all that there is to trade."""


HALF_SUM = 0.95
"""Of a sum that is rounded to half precision once: STRUCTURE times that is more than any rounding."""


SWALLOWED = 0.5
"""Of the terms that are less than a rounding of the largest, which a sum made one after the other loses."""


def softmax_shared(keys: Any, p: Precision, largest: Any = 0.0) -> Any:
    """What the sum over so many keys has a row of probabilities off by, as a share; largest: probability."""
    return p.u * (1 + sum_one_by_one(keys, largest)) + HALF_SUM * p.half


def probabilities(
    scores: Array, s_scores: Array, visible: Any, scale: float, p: Precision
) -> tuple[Array, Array, Array]:
    """Softmax over the visible keys, its deviation, and the relative error that all of a row share."""
    scaled = np.where(visible, scores * scale, -np.inf)
    below = scaled - scaled.max(axis=1, keepdims=True)
    e = np.exp(below)
    total = e.sum(axis=1, keepdims=True)
    probs = e / total
    # exp makes of an absolute error a relative one: of the score, of its scaling, of what is subtracted.
    u = p.u + p.half
    inner = (s_scores * scale) ** 2 + u**2 * (2 * (scores * scale) ** 2 + below**2)
    inner = np.where(visible, inner, 0.0)
    mean = np.sum(probs * inner, axis=1, keepdims=True)  # the sum is off by what it is made of
    largest = probs.max(axis=1, keepdims=True)
    little = np.where(probs < p.u * largest, probs, 0.0)
    lost = SWALLOWED * little.sum(axis=1, keepdims=True)
    shared = np.hypot(softmax_shared(visible.sum(axis=1, keepdims=True), p, largest), lost)
    relative = np.sqrt(inner + mean + shared**2 + (EXP_ROUNDINGS * p.u + 2 * p.half) ** 2)
    # Where scores are so large that they are off by more than 1, exp is no straight line; all are within 1.
    s_probs = probs * np.expm1(np.minimum(STEEP * relative, 60.0)) / STEEP
    if np.any(steep := STEEP * relative > 1):  # of what is next to nothing exp alone knows how far it reaches
        reached = (below - np.log(total) + STEEP * relative)[steep]
        s_probs[steep] = np.maximum(s_probs[steep], np.exp(np.minimum(reached, 0.0)) / STEEP)
    return probs, np.where(visible, np.minimum(s_probs, TRADED) + p.least, 0.0), shared


GLU_ROUNDINGS = 4.0
"""exp, the division, two products."""

BOTH = 1.5
"""Of what is off by more than it is: a gate's deviation times an up's, each of which may be 3 of its own."""

BY_TANH = 8.0
"""Roundings of 1: a sigmoid of less, as half of 1 + tanh, is a few steps of these, for like gates alike."""


def gated_by_tanh(gate: Array, up: Array, p: Precision) -> Array | None:
    """What silu(gate) * up loses where the sigmoid is made of tanh, signed; None where no gate is so low."""
    if gate.min(initial=0.0) > np.log(BY_TANH * p.u):
        return None
    sigmoid = np.exp(np.minimum(gate, 0.0))  # that low, no 1 counts beside it
    return np.asarray(np.where(sigmoid < BY_TANH * p.u, np.minimum(sigmoid, p.u), 0.0) * gate * up)


def silu(gate: Array) -> Array:
    """gate * sigmoid(gate)"""
    return np.asarray(gate / (1 + np.exp(-gate)))


def reached(gate: Array, off: Array, times: float) -> Array:
    """What silu comes to be off by where a gate is off by so much, signed as `off`.

    Below some -10 it is all exp, and no straight line for a gate that is off by 1: followed for `times` of
    the deviation, either way, and divided by that.
    """
    if times * float(np.abs(off).max(initial=0.0)) < 0.1:
        sigmoid = 1 / (1 + np.exp(-gate))
        return np.asarray(sigmoid * (1 + gate * (1 - sigmoid)) * off)
    right = silu(gate)
    ways = np.stack([silu(gate + times * off) - right, right - silu(gate - times * off)]) / times
    return np.asarray(np.where(np.abs(ways[0]) >= np.abs(ways[1]), ways[0], ways[1]))


def gated(
    gate: Array, up: Array, s_gate: Array | None, s_up: Array | None, p: Precision
) -> tuple[Array, Array]:
    """silu(gate) * up and its deviation."""
    sigmoid = 1 / (1 + np.exp(-gate))
    value = gate * sigmoid
    product = value * up
    # exp(-a) takes the rounding of a with it, the more the larger a is, until the 1 beside it counts more.
    rounded = (
        GLU_ROUNDINGS * (p.u + 0.5 * p.half) * np.abs(product) * (1 + 0.5 * np.abs(gate) * (1 - sigmoid))
    )
    # The sigmoid and silu may be rounded on the way: where they are next to nothing float16 has no digits.
    tiny = np.minimum(p.least, np.abs(value)) + np.abs(gate) * np.minimum(p.least, sigmoid)
    least = p.least + np.abs(up) * tiny
    # In float16 exp(-gate) has no room from a gate of -11 down: the sigmoid is 0 then, as MLX's is.
    if p.largest < np.inf:
        least += np.abs(product) * (gate < -np.log(p.largest))
    # One that makes it of tanh is off by a rounding of 1 there.
    squares = (rounded + least) ** 2 + (p.u * gate * up) ** 2
    if s_gate is not None:
        moved = reached(gate, s_gate, STEEP)
        squares += (moved * (np.abs(up) if s_up is None else np.abs(up) + BOTH * s_up)) ** 2
    if s_up is not None:
        squares += (value * s_up) ** 2
    return product, np.sqrt(squares)
