"""What a rotation really did, read from the tensors before and after it: which pairs, by which angles.

A rotation keeps the length of each pair that it turns, so the pairs show whatever the angles are; then
the angles tell offset, theta, scaling and number of rotary features. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs import Bug
from llama_ckpt.diagnose.patched_oracle import PatchedOracle
from llama_ckpt.identify.rope_numbers import (
    MOST_NTK,
    frequencies_of,
    in_digits,
    is_plain,
    llama3_scaled,
    scale_of,
    theta_of,
)
from llama_ckpt.identify.turns import Layout, layouts

__all__ = ["rope_bugs"]

Array: TypeAlias = NDArray[Any]

GRID = 400
"""Values of a parameter that are tried before the best is refined."""

ROWS = 64
"""So many tokens are looked at: the first ones, which lie close together, and the last."""

KEPT = 1e-2
"""A pair that is turned keeps its length to this share, in any precision."""

STILL = 1e-3
"""What changes less than this share of itself is not turned at all, in any precision."""

FITS = 1e-3
"""Of 1 - cos(error): angles further off are not worth trying."""

WORTH = 0.1
"""A fitted number leaves less than this share of what the model's own leaves."""

ROUNDED = 1e-13
"""What rounding to float32 leaves of it."""

OFFSETS = range(-16, 17)
FACTORS = (2.0, 4.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True)
class Phases:
    """How far each pair was turned: complex `[n, pairs]`, its size a weight, at positions `[n]`."""

    turn: Array
    at: Array

    def misfit(self, at: Array, frequencies: Array) -> float:
        """1 - cos(error) of angles `at * frequencies`, the weighted mean."""
        fit = np.sum(np.real(self.turn * np.exp(-1j * np.asarray(at)[:, None] * frequencies)))
        return float(1 - fit / (np.sum(np.abs(self.turn)) or 1.0))


@dataclass(frozen=True)
class Angles:
    """Other angles than the right ones, and how to say them; the name of what is fitted."""

    name: str
    words: str
    at: Array
    frequencies: Array


def rope_bugs(point: str, y: Array, given: Mapping[str, Any]) -> Iterator[Bug]:
    """The rotations that give `y [n, heads, head_dim]` at point "q_rope" or "k_rope".

    Args:
        given: q, k, positions and frequencies, as the oracle takes them.
    """
    x = given.get("magnitude", 1.0) * np.asarray(given["q" if point == "q_rope" else "k"], np.float64)
    positions = np.asarray(given["positions"], np.float64)
    moved = np.flatnonzero(positions)
    if x.shape != y.shape or not len(moved):
        return
    rows = moved if len(moved) <= ROWS else np.r_[moved[: ROWS // 2], moved[-ROWS // 2 :]]
    if float(np.linalg.norm(y[rows] - x[rows])) <= STILL * float(np.linalg.norm(x[rows])):
        return  # nothing is turned: frequencies that are whole turns would say the same, and are none
    frequencies = np.asarray(given["frequencies"], np.float64)
    for layout in layouts(x.shape[-1]):
        turn = _turned(x[rows], y[rows], layout)
        if turn is not None:
            for angles in _angles(Phases(turn, positions[rows]), frequencies, positions):
                yield _bug(layout, angles)


def _turned(x: Array, y: Array, layout: Layout) -> Array | None:
    """The turn of each pair in all heads together, `[n, pairs]`; None where these pairs were not turned."""
    rest = np.setdiff1d(np.arange(x.shape[-1]), np.r_[layout.a, layout.b])
    still = float(np.linalg.norm(y[..., rest] - x[..., rest]))
    if still > KEPT**0.5 * float(np.linalg.norm(x[..., rest])):
        return None
    before, after = (z[..., layout.a] + 1j * z[..., layout.b] for z in (x, y))
    turn = np.sum(after * np.conj(before), axis=1)
    size = [np.sum(np.abs(z) ** 2, axis=1) for z in (before, after)]
    kept = np.sum(np.abs(size[1] - size[0])) + np.sum(np.abs(size[0] - np.abs(turn)))
    return np.asarray(turn) if kept <= KEPT * np.sum(size[0]) else None


def _angles(phases: Phases, own: Array, positions: Array) -> Iterator[Angles]:
    """Angles that fit: of the model's own theta over fewer pairs, or with one number fitted."""
    n, theta, scale = phases.turn.shape[1], theta_of(own), scale_of(own)
    tries: list[Angles] = []
    if n < len(own):
        tries.append(Angles("partial", "", positions, frequencies_of(theta, n, scale)))
        tries.append(Angles("partial", ", with the whole head's frequencies", positions, own[:n]))
    tries = [one for one in tries if phases.misfit(phases.at, one.frequencies) < FITS]
    yield from tries
    base = tries[0].frequencies if tries else own[:n]
    plain = phases.misfit(phases.at, base)
    for one in _one_number(phases, base, positions, scale):
        at = phases.at + (one.at[0] - positions[0])
        misfit = phases.misfit(at, one.frequencies)
        if misfit < FITS and misfit < WORTH * plain - ROUNDED:  # else its number is what it is without
            yield one


def _one_number(phases: Phases, base: Array, positions: Array, scale: float) -> Iterator[Angles]:
    n = len(base)
    offset = min(OFFSETS, key=lambda k: phases.misfit(phases.at + k, base))
    yield Angles("offset", f"RoPE's positions are off by {offset:+d}", positions + offset, base)

    def of_theta(log: float) -> Array:
        return frequencies_of(np.exp(log), n, scale)

    theta = float(np.exp(_fitted(phases, of_theta, np.log(10), np.log(1e9))))
    said = f"RoPE's theta is {in_digits(theta)}{_as_ntk(theta, theta_of(base), n)}"
    if is_plain(base):  # where the file divides slow pairs, a theta says nothing of what became of that
        yield Angles("theta", said, positions, of_theta(np.log(theta)))
    factor = float(np.exp(_fitted(phases, lambda log: base * np.exp(log), -np.log(64), np.log(64))))
    said = f"RoPE's frequencies are multiplied by {factor:.6g}"
    yield Angles("factor", said, positions, base * factor)
    for factor in FACTORS:
        said = f"RoPE's frequencies are scaled by {factor:g} as Llama 3.1's are"
        yield Angles("llama-3", said, positions, llama3_scaled(base, factor))


def _as_ntk(theta: float, own: float, n_pairs: int) -> str:
    """What NTK-aware scaling by a whole number makes of theta is said to be that."""
    if n_pairs < 2:
        return ""
    factor = (theta / own) ** ((n_pairs - 1) / n_pairs)
    whole = round(factor)
    known = 1 < whole <= MOST_NTK and abs(factor / whole - 1) < 1e-4
    return f", as NTK scaling by {whole} makes it" if known else ""


def _fitted(phases: Phases, frequencies: Callable[[float], Array], low: float, high: float) -> float:
    """The parameter of the frequencies that fits best.

    From one token to the next nothing turns by more than 1, so the steps say nearly what it is; the angles
    themselves, which have turned many times round, then say it exactly.
    """
    ones = np.flatnonzero(np.diff(phases.at) == 1)
    if not len(ones):
        return _smallest(lambda value: phases.misfit(phases.at, frequencies(value)), low, high)
    step = np.sum(phases.turn[ones + 1] * np.conj(phases.turn[ones]), axis=0, keepdims=True)
    steps, one = Phases(step, np.ones(1)), np.ones(1)
    about = _smallest(lambda value: steps.misfit(one, frequencies(value)), low, high)
    width = 2e-3
    return _smallest(lambda value: phases.misfit(phases.at, frequencies(value)), about - width, about + width)


def _smallest(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where `cost` is smallest: the best of a grid, then nine tenths closer again and again."""
    best = float(min(np.linspace(low, high, GRID), key=cost))
    width = (high - low) / GRID
    for _ in range(12):
        best = float(min(np.linspace(best - width, best + width, 41), key=cost))
        width /= 10
    return best


def _bug(layout: Layout, angles: Angles) -> Bug:
    """The rotation of these pairs by these angles."""

    def rope(right: PatchedOracle, q: Any, k: Any, at: Any = None, f: Any = None, **given: Any) -> Any:
        turning = angles.at[:, None] * angles.frequencies
        cos, sin = np.cos(turning)[:, None], np.sin(turning)[:, None]
        larger = given.get("magnitude", 1.0)
        return tuple(larger * _turn(right.float64(x), layout, cos, sin) for x in (q, k))

    of_the_same = not angles.words or angles.words.startswith(",")
    both = (layout.words, angles.words)
    sentence = "".join(both) if of_the_same else ", and ".join(filter(None, both))
    return Bug(f"rope-{angles.name}-fitted", sentence, "1B", "rope", rope)


def _turn(x: Array, layout: Layout, cos: Array, sin: Array) -> Array:
    turned = np.array(x)
    a, b = x[..., layout.a], x[..., layout.b]
    turned[..., layout.a], turned[..., layout.b] = a * cos - b * sin, a * sin + b * cos
    return turned
