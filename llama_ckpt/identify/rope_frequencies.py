"""How fast each pair was turned, and in which words that is said: theta, a scaling, an order, another head.

The frequency of a pair is the number whose angles fit its rows best. Positions are whole numbers, so that
it is known but for whole turns a token. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.rope_numbers import (
    MOST_NTK,
    frequencies_of,
    in_digits,
    is_plain,
    same_number,
    theta_of,
)
from llama_ckpt.identify.rope_scalings import Frequencies, Measured, of_this_file, scalings_of
from llama_ckpt.identify.turns import Turns
from llama_ckpt.listing import some

__all__ = ["Frequencies", "Measured", "measured_frequencies", "said_of"]

Array: TypeAlias = NDArray[Any]

ROWS = 256
"""So many neighbouring rows are looked at for the first estimate."""

STATED = (1e4, 1e5, 1e6, 5e5, 5e6, 1e7, 2.5e5, 3.2e5)
"""Thetas that models state."""

FINE = 8
"""So many frequencies are tried for each turn that they make in these rows."""


def measured_frequencies(turns: Turns, positions: Array) -> Measured | None:
    """Radians a position for each pair, from -pi to pi; None where no row has moved."""
    at = np.asarray(positions, np.float64)
    moved = np.flatnonzero(at)
    if not len(moved):
        return None
    rows = _neighbours(at, moved)
    # Far from 0 a frequency makes many turns up to the first row: first from row to row, then from 0 on.
    turn, near = turns.turn[rows], at[rows] - at[rows].mean()
    grid = np.linspace(-np.pi, np.pi, int(FINE * np.ptp(near)) + 16, endpoint=False)
    fit = np.exp(-1j * grid[:, None] * near) @ turn
    found = grid[np.argmax(np.abs(fit) if len(rows) > 1 else np.real(fit), axis=0)]
    if len(rows) > 1:
        for _ in range(3):
            common = np.sum(turn * np.exp(-1j * near[:, None] * found), axis=0)
            found = _refined(turn * np.exp(-1j * np.angle(common)), near, found, 1)
    # All rows at once would have many maxima close to each other: each estimate is fine enough for the next.
    order = moved[np.argsort(np.abs(at[moved]), kind="stable")]
    found = _refined(turns.turn[rows], at[rows], found)
    for share in (0.25, 0.5, 1.0):
        few = order[: max(1, int(share * len(order)))]
        found = _refined(turns.turn[few], at[few], found)
    weight = np.abs(turns.turn)
    sure = np.sqrt(np.sum(weight, axis=0) / np.maximum(np.sum(weight * at[:, None] ** 2, axis=0), 1e-300))
    return Measured(found, sure)


def _neighbours(at: Array, moved: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows not far from each other and from position 0, where few turns are made."""
    order = moved[np.argsort(np.abs(at[moved]), kind="stable")]
    return order[:ROWS]


def _refined(turn: Array, at: Array, f: Array, times: int = 4) -> Array:
    """Least squares on what the angles leave, where that is less than a half turn."""
    weight = np.abs(turn)
    for _ in range(times):
        left = np.angle(turn * np.exp(-1j * at[:, None] * f))
        f = f + np.sum(weight * at[:, None] * left, axis=0) / np.maximum(
            np.sum(weight * at[:, None] ** 2, axis=0), 1e-300
        )
    return np.asarray(f)


def said_of(found: Measured, own: Array, config: Any) -> Iterator[Frequencies]:
    """What the frequencies are where `own [head_dim / 2]` are right; the shortest description first."""
    pairs = len(found.at)
    base = own[:pairs]
    yield from _of_this_file(own, pairs, config)
    yield from _multiplied(found, base)
    if pairs > 1:
        factors = np.asarray(getattr(config, "rope_factors", ()), np.float64)
        if len(factors) == len(own) == pairs:  # of a theta before the file's divisors
            plain = Measured(found.at * factors, found.sure * factors)
            for one in _of_a_theta(plain, own * factors):
                yield replace(one, at=one.at / factors)
        if is_plain(own):
            yield from _of_a_theta(found, own)
        elif getattr(config, "rope_theta", 0):
            unscaled = frequencies_of(float(config.rope_theta), len(own))
            for one in _of_a_theta(found, unscaled):
                yield replace(one, words=f"{one.words}, and the file's scaling is missing", free=one.free + 1)
        yield from scalings_of(found, own, config)
        yield from _in_other_order(found, own)
    words = f"each pair turns by a frequency of its own: {some([f'{f:.4g}' for f in found.at], 8)}"
    parameters = {"frequencies": found.at.tolist(), "own": own.tolist()}
    yield Frequencies("rope.frequencies", words, found.at, pairs + 1, parameters=parameters)


def _of_this_file(own: Array, pairs: int, config: Any) -> Iterator[Frequencies]:
    """What is made of the file's numbers by leaving one out, or of the pairs of a part of the head."""
    yield from of_this_file(own, pairs, config)
    if pairs < len(own):
        plain = frequencies_of(theta_of(own), pairs, 1 / own[0]) if pairs > 1 else own[:1]
        yield Frequencies("rope.partial", "", plain, 0, "a share of rotary features that Llama has not")
        said = "with the whole head's frequencies"
        yield Frequencies("rope.partial", said, own[:pairs], 0, "a share of rotary features")


def _multiplied(found: Measured, base: Array) -> Iterator[Frequencies]:
    # A pair's frequency is known but for whole turns a token: of the pairs' ratios that which leaves the
    # others least, then what is left of all.
    weight = (base / found.sure) ** 2

    def left(factor: float) -> Array:
        return np.asarray((found.at - factor * base + np.pi) % (2 * np.pi) - np.pi)

    ratios = found.at / base
    factor = float(min(ratios, key=lambda one: float(np.sum((left(one) / found.sure) ** 2))))
    factor += float(np.sum(weight * left(factor) / base) / np.sum(weight))
    whole = round(factor) if abs(factor) >= 1 else 1 / round(1 / factor) if abs(factor) > 1e-3 else 0.0
    if whole and abs(factor / whole - 1) < 1e-4:
        factor = float(whole)
    if factor == 1:
        return
    words, code = f"RoPE's frequencies are multiplied by {factor:.6g}", "a scaling of the positions"
    tells = "a longer prompt"
    if factor == -1:
        words, code = "RoPE turns the other way", "the sine's sign"
    elif factor == 2:
        words, code = "RoPE turns by twice the angle: it is applied twice, or its frequencies are doubled", ""
        tells = "the tensor between the two rotations"
    elif abs(factor / (2 * np.pi) - 1) < 1e-5 or abs(factor * np.pi / 180 - 1) < 1e-5:
        words += ", 2 pi: angles are taken in turns" if factor < 10 else ", 180 / pi: angles are in degrees"
    elif 0 < factor < 1 and factor == whole:
        words = f"RoPE is scaled linearly by {round(1 / factor)}, which the file does not say"
    yield Frequencies("rope.factor", words, factor * base, 1, code, tells, {"factor": factor})


def _of_a_theta(found: Measured, own: Array) -> Iterator[Frequencies]:
    """theta^(-i / pairs), as it is, as this file scales it, and times any number."""
    pairs, d = len(found.at), 2 * len(own)
    good = (found.at > 0) & (found.at > 4 * 1e-7 * found.sure)
    if good.sum() < 2:
        return
    i = np.arange(pairs)[good]
    log, weight = np.log(found.at[good]), (found.at[good] / found.sure[good]) ** 2
    log0 = float(np.log(own[0]))
    slope = float(np.sum(weight * i * (log - log0)) / np.sum(weight * i * i))
    theta = float(np.exp(-slope * pairs))
    for value in dict.fromkeys((_round_number(theta), theta)):
        if value > 0 and np.isfinite(value) and not same_number(value, theta_of(own)):
            at = frequencies_of(value, pairs, 1 / own[0])
            yield Frequencies("rope.theta", _theta_said(value, own, d), at, 1, parameters={"theta": value})
    center = np.sum(weight * i) / np.sum(weight)
    mean = np.sum(weight * log) / np.sum(weight)
    slope = float(np.sum(weight * (i - center) * (log - mean)) / np.sum(weight * (i - center) ** 2))
    theta, first = float(np.exp(-slope * pairs)), float(np.exp(mean - slope * center))
    if np.isfinite(theta):
        words, free = f"RoPE's theta is {theta:.6g}, and its first pair turns by {first:.6g} a position", 2
        shift = float(np.log(first) / slope) if slope else 0.0
        if abs(round(shift) - shift) < 1e-3 and round(shift) and abs(theta / theta_of(own) - 1) < 1e-3:
            words = f"RoPE's exponents begin at pair {round(shift)}, not at 0"
            free = 1
        at = first * np.exp(slope * np.arange(pairs))
        yield Frequencies("rope.theta", words, at, free, parameters={"theta": theta, "first": first})


def _round_number(theta: float) -> float:
    """Four digits, where the estimate is that near to them."""
    if not 0 < theta < 1e30:
        return theta
    short = float(f"{theta:.4g}")
    return short if abs(short / theta - 1) < 1e-3 else theta


def _theta_said(theta: float, own: Array, d: int) -> str:
    """With the exponent or the scaling that makes the same of the right theta."""
    right, pairs = theta_of(own), len(own)
    said = f"RoPE's theta is {in_digits(theta)} instead of {in_digits(right)}"
    if not (right > 1 and theta > 1):
        return said
    wide = d * np.log(right) / np.log(theta)
    if abs(wide - round(wide)) < 1e-3 * wide:
        exponents = f"RoPE's exponents are 2i/{round(wide)} instead of 2i/{d}"
        # A theta that nobody states is none: the exponents are then what is wrong.
        return f"{said}, or {exponents}" if theta in STATED else f"{exponents}, a theta of {theta:.6g}"
    if pairs > 1:
        factor = (theta / right) ** ((pairs - 1) / pairs)
        if 1 < round(factor) <= MOST_NTK and abs(factor / round(factor) - 1) < 1e-3:
            said += f", as NTK scaling by {round(factor)} makes it"
    return said


def _in_other_order(found: Measured, own: Array) -> Iterator[Frequencies]:
    """Each pair turned by the frequency of another pair of the head, or not at all."""
    pairs = len(found.at)
    table = np.r_[0.0, own]
    off = np.abs(found.at[:, None] - table)
    chosen = np.argmin(off, axis=1) - 1
    order = chosen.tolist()
    at = np.where(chosen < 0, 0.0, own[chosen])
    still = [i for i, j in enumerate(order) if j < 0]
    turning = [j for j in order if j >= 0]
    parameters = {"pairs": order}
    half = pairs // 2
    if order == [*range(pairs - 1, -1, -1)]:
        words, free = "RoPE's frequencies run from slow to fast", 0
    elif order == [i // 2 for i in range(pairs)]:
        words, free = "each of RoPE's frequencies is used for two pairs after each other", 0
    elif pairs % 2 == 0 and order == [2 * i % pairs for i in range(pairs)]:
        words, free = (
            "every second of RoPE's frequencies is used, twice round: they are those of half a head",
            0,
        )
    elif pairs % 2 == 0 and order == [i % half for i in range(pairs)]:
        words, free = "the first half of RoPE's frequencies is used twice", 0
    elif still and turning == [i for i, j in enumerate(order) if j >= 0]:
        words, free = f"pairs {some(still, 12)} are not turned", len(still)
    else:
        words, free = f"pairs are turned by the frequencies of pairs {some(order, 16)}", pairs
    yield Frequencies("rope.order", words, at, free, "a table laid out otherwise", parameters=parameters)
