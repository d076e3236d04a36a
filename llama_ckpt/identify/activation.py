"""The curve that was applied to the gate, and what it is called.

The factor on up follows from what came out, element by element. Held against it are curves by name, with
numbers of their own fitted (a slope in the exponent, a bound), gate and up exchanged, both taken otherwise.
The measured curve goes with every answer, for a picture. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.curves import CURVES, measured_curve, sigmoid, smoothed
from llama_ckpt.identify.operands import tensors
from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.judging.matching import leaves_at_most, passes

__all__ = ["activation_guesses"]

Array: TypeAlias = NDArray[Any]

MOST_SMOOTHED = 20_000
"""Elements of a product whose curve, without a name, is looked at."""

CODE = "the name of the activation in the configuration"

SLOPES = np.geomspace(0.05, 20, 120)
"""Slopes in SiLU's exponent that are tried before the best one is made finer."""


FEW = 16
"""So many rows are looked at first, those that are furthest off: what leaves too much there is out."""

Make: TypeAlias = Callable[[Array, Array], Array]
"""The product after a curve, of gate and up."""

Candidate: TypeAlias = tuple[str, str, int, Make]
"""Kind, sentence, numbers that were read, and what the product would be."""


@dataclass(frozen=True)
class _Parts:
    """What went into the product after the curve, and what came out; `[n, ffn]` each."""

    gate: Array
    up: Array
    x: Array

    def left(self, make: Make) -> float:
        """The norm of what a product leaves."""
        return float(np.linalg.norm(self.x - make(self.gate, self.up)))

    @cached_property
    def curve(self) -> Mapping[str, Any]:
        """The measured one."""
        return measured_curve(self.gate, self.up, self.x)

    @cached_property
    def few(self) -> _Parts:
        """The rows that are furthest off."""
        off = np.linalg.norm(self.x - _silu(self.gate) * self.up, axis=-1)
        rows = np.argsort(-off)[:FEW]
        return _Parts(self.gate[rows], self.up[rows], self.x[rows])


def activation_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where ffn_swiglu is the first wrong tensor."""
    one = asked.of("ffn_swiglu")
    parts = _parts_of(asked)
    if one is None or parts is None or passes(one.x, _silu(parts.gate) * parts.up, one.limit):
        return
    noise = leaves_at_most(one.limit) * float(np.linalg.norm(parts.x))
    named = False
    for kind, sentence, numbers, make in _curves(parts, 4 * noise):
        named = True
        yield _guess(asked, parts, f"activation.{kind}", sentence, numbers, make(parts.gate, parts.up))
    if not named and parts.x.size <= MOST_SMOOTHED:
        yield from _unnamed(asked, parts)


def _curves(parts: _Parts, most: float) -> Iterator[Candidate]:
    """Those that leave no more than that; such with a number of their own where no other does."""
    found = False
    for candidate in _candidates():
        if parts.few.left(candidate[-1]) <= most and parts.left(candidate[-1]) <= most:
            found = True
            yield candidate
    if not found and any(parts.few.left(fit[-1]) <= most for fit in _with_a_number(parts.few)):
        yield from (fit for fit in _with_a_number(parts) if parts.left(fit[-1]) <= most)


def _guess(
    asked: Asked,
    parts: _Parts,
    kind: str,
    sentence: str,
    numbers: int,
    made: Array,
    *,
    part: bool = False,
) -> Guess:
    predicted = tensors(asked, {**_both(asked, parts), "ffn_swiglu": made})
    parameters = {"name": sentence, "curve": parts.curve}
    return Guess(kind, sentence, predicted, numbers, parameters=parameters, code=CODE, part=part)


def _unnamed(asked: Asked, parts: _Parts) -> Iterator[Guess]:
    """A function of the gate that has no name here: what it gives at some gates."""
    with np.errstate(all="ignore"):
        factor = parts.x / parts.up
    made = smoothed(parts.gate, factor, np.where(np.isfinite(factor), parts.up**2, 0.0)) * parts.up
    x, y = parts.curve["x"], parts.curve["y"]
    if len(x) < 8:
        return
    few = [int(i) for i in np.linspace(0, len(x) - 1, 6)]
    said = ", ".join(f"{y[i]:.3g} at {x[i]:.3g}" for i in few)
    sentence = f"another function of the gate than SiLU is applied: {said}"
    yield _guess(asked, parts, "activation.unnamed", sentence, len(x), made, part=True)


def _parts_of(asked: Asked) -> _Parts | None:
    """Their gate, up and product, where all three can be relied on."""
    found = []
    for point, field in (("ffn_gate", "w_gate"), ("ffn_up", "w_up"), ("ffn_swiglu", "")):
        theirs = asked.theirs(point)
        if theirs is None and field and field in asked.given:
            theirs = np.asarray(asked.given["x"], np.float64) @ np.asarray(asked.given[field]).T
        if theirs is None or not np.isfinite(theirs).all():
            return None
        found.append(theirs)
    if len({one.shape for one in found}) > 1:
        return None
    return _Parts(*found)


def _both(asked: Asked, parts: _Parts) -> dict[str, Array]:
    """Gate and up as they have them, so that what follows is computed from these."""
    made = {}
    for point, array in (("ffn_gate", parts.gate), ("ffn_up", parts.up)):
        one = asked.of(point)
        if one is not None and passes(one.x, one.o, one.limit):
            continue
        made[point] = array
    return made


def _silu(a: Array) -> Array:
    return np.asarray(a * sigmoid(a))


def _candidates() -> Iterator[Candidate]:
    """Kind, sentence, numbers, and what the product would be."""
    right = CURVES[0].function

    def curved(function: Callable[[Array], Array]) -> Make:
        return lambda gate, up: function(gate) * up

    def exchanged(function: Callable[[Array], Array]) -> Make:
        return lambda gate, up: function(up) * gate

    for curve in CURVES[1:]:
        yield "curve", f"the activation is {curve.name}, not SiLU", 1, curved(curve.function)
    yield "exchanged", "gate and up are exchanged: SiLU is applied to up", 1, exchanged(right)
    for curve in CURVES[1:]:
        said = f"gate and up are exchanged, and the activation is {curve.name}, not SiLU"
        yield "exchanged", said, 2, exchanged(curve.function)
    for said, make in COMBINED.items():
        yield "combined", said, 1, make


COMBINED: Mapping[str, Make] = {
    "SiLU is applied to gate times up": lambda gate, up: _silu(gate * up),
    "SiLU is applied to both, gate and up": lambda gate, up: _silu(gate) * _silu(up),
    "up is added, not multiplied": lambda gate, up: _silu(gate) + up,
    "SiLU is applied to gate plus up": lambda gate, up: _silu(gate + up),
    "up is left out": lambda gate, up: _silu(gate),
    "SiLU is applied to up, and the gate is left out": lambda gate, up: _silu(up),
    "the product is that of up plus 1": lambda gate, up: _silu(gate) * (up + 1),
    "the product is taken twice": lambda gate, up: _silu(gate) * up * 2,
}
"""Other ways to bring the two together."""


def _with_a_number(parts: _Parts) -> Iterator[Candidate]:
    """Curves with a number of their own, fitted."""
    gate, up, x = parts.gate, parts.up, parts.x
    slope = _best(lambda s: gate * sigmoid(s * gate) * up, x, SLOPES)
    said = f"the activation is a * sigmoid({slope:.5g} a), not SiLU"
    yield "fitted", said, 1, lambda gate, up: gate * sigmoid(slope * gate) * up
    leak = _least(x, np.minimum(gate, 0) * up, np.maximum(gate, 0) * up)
    said = f"the activation is leaky ReLU with slope {leak:.5g}, not SiLU"
    yield "fitted", said, 1, lambda gate, up: np.where(gate > 0, gate, leak * gate) * up
    for what, bound, make in _clipped(parts):
        yield "fitted", f"{what} beyond {bound:.6g} is clipped", 1, make


def _least(x: Array, part: Array, rest: Array) -> float:
    square = float(np.vdot(part, part))
    return float(np.vdot(x - rest, part)) / square if square else 0.0


def _best(make: Callable[[float], Array], x: Array, among: Array) -> float:
    """The number that leaves least, by ever finer steps."""
    low, high = float(among[0]), float(among[-1])
    for _ in range(7):
        left = [float(np.linalg.norm(x - make(float(one)))) for one in among]
        best = int(np.argmin(left))
        low = float(among[max(best - 1, 0)])
        high = float(among[min(best + 1, len(among) - 1)])
        middle = float(among[best])
        among = np.unique(np.concatenate([np.linspace(low, middle, 9), np.linspace(middle, high, 9)]))
    return middle


def _clipped(parts: _Parts) -> Iterator[tuple[str, float, Make]]:
    """Gate, up or the product held within bounds: the largest that is seen tells where."""
    gate, up, x = parts.gate, parts.up, parts.x
    bound = float(np.abs(x).max())
    yield "the product", bound, lambda gate, up: np.clip(_silu(gate) * up, -bound, bound)
    with np.errstate(all="ignore"):
        of_up = np.abs(x / _silu(gate))
        of_gate = x / up
    for what, make, sizes in (
        ("up", lambda c, gate, up: _silu(gate) * np.clip(up, -c, c), of_up),
        ("the gate", lambda c, gate, up: _silu(np.minimum(gate, c)) * up, of_gate),
        ("the gate, on either side,", lambda c, gate, up: _silu(np.clip(gate, -c, c)) * up, of_gate),
    ):
        top = _level(sizes, np.abs(up) if what == "up" else gate, what)
        if top is not None:
            yield what, top, partial(make, top)


def _level(seen: Array, right: Array, what: str) -> float | None:
    """The bound of a gate or of up: the value that many stand at where right ones are beyond."""
    values = seen[np.isfinite(seen)]
    if not len(values):
        return None
    top = float(np.quantile(np.abs(values), 0.999))
    near = values[np.abs(np.abs(values) - top) <= 1e-3 * top]
    if len(near) < 2:
        return None
    level = float(np.median(np.abs(near)))
    return level if what == "up" else _gate_of(level)


def _gate_of(factor: float) -> float:
    """The gate whose SiLU is that factor, above 0."""
    gate = max(factor, 1e-6)
    for _ in range(60):
        s = float(sigmoid(np.asarray(gate)))
        gate -= (gate * s - factor) / (s + gate * s * (1 - s))
    return gate
