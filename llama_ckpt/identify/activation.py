"""The curve that was applied to the gate, and what it is called.

The factor on up follows from what came out, element by element. Held against it are curves by name, with
numbers of their own fitted (a slope in the exponent, a bound), gate and up exchanged, both taken otherwise.
The measured curve goes with every answer, for a picture. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.curves import CURVES, Curve, measured_curve, sigmoid, smoothed
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


@dataclass(frozen=True)
class _Parts:
    """What went into the product after the curve, and what came out; `[n, ffn]` each."""

    gate: Array
    up: Array
    x: Array


def activation_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where ffn_swiglu is the first wrong tensor."""
    one = asked.of("ffn_swiglu")
    parts = _parts_of(asked)
    if one is None or parts is None or passes(one.x, _silu(parts.gate) * parts.up, one.limit):
        return
    noise = leaves_at_most(one.limit) * float(np.linalg.norm(parts.x))
    curve = {"curve": measured_curve(parts.gate, parts.up, parts.x)}
    named = False
    for kind, sentence, numbers, made in _candidates(parts):
        if kind == "fitted" and named:
            continue
        left = float(np.linalg.norm(parts.x - made))
        if not np.isfinite(left) or left > 4 * noise:
            continue
        named = True
        yield _guess(asked, parts, f"activation.{kind}", sentence, numbers, made, curve)
    if not named and parts.x.size <= MOST_SMOOTHED:
        yield from _unnamed(asked, parts, curve)


def _guess(
    asked: Asked,
    parts: _Parts,
    kind: str,
    sentence: str,
    numbers: int,
    made: Array,
    parameters: Mapping[str, Any],
    *,
    part: bool = False,
) -> Guess:
    predicted = tensors(asked, {**_both(asked, parts), "ffn_swiglu": made})
    parameters = {"name": sentence, **parameters}
    return Guess(kind, sentence, predicted, numbers, parameters=parameters, code=CODE, part=part)


def _unnamed(asked: Asked, parts: _Parts, curve: Mapping[str, Any]) -> Iterator[Guess]:
    """A function of the gate that has no name here: what it gives at some gates."""
    with np.errstate(all="ignore"):
        factor = parts.x / parts.up
    made = smoothed(parts.gate, factor, np.where(np.isfinite(factor), parts.up**2, 0.0)) * parts.up
    x, y = curve["curve"]["x"], curve["curve"]["y"]
    if len(x) < 8:
        return
    few = [int(i) for i in np.linspace(0, len(x) - 1, 6)]
    said = ", ".join(f"{y[i]:.3g} at {x[i]:.3g}" for i in few)
    sentence = f"another function of the gate than SiLU is applied: {said}"
    yield _guess(asked, parts, "activation.unnamed", sentence, len(x), made, curve, part=True)


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


def _candidates(parts: _Parts) -> Iterator[tuple[str, str, int, Array]]:
    """Kind, sentence, numbers, and what the product would be."""
    gate, up = parts.gate, parts.up
    right = CURVES[0]
    for curve in CURVES[1:]:
        yield "curve", f"the activation is {curve.name}, not SiLU", 1, curve.function(gate) * up
    yield "exchanged", "gate and up are exchanged: SiLU is applied to up", 1, right.function(up) * gate
    for curve in CURVES[1:]:
        said = f"gate and up are exchanged, and the activation is {curve.name}, not SiLU"
        yield "exchanged", said, 2, curve.function(up) * gate
    yield from _combined(right, gate, up)
    yield from _with_a_number(parts)


def _combined(right: Curve, gate: Array, up: Array) -> Iterator[tuple[str, str, int, Array]]:
    """Other ways to bring the two together."""
    silu = right.function
    yield "combined", "SiLU is applied to gate times up", 1, silu(gate * up)
    yield "combined", "SiLU is applied to both, gate and up", 1, silu(gate) * silu(up)
    yield "combined", "up is added, not multiplied", 1, silu(gate) + up
    yield "combined", "SiLU is applied to gate plus up", 1, silu(gate + up)
    yield "combined", "up is left out", 1, silu(gate)
    yield "combined", "SiLU is applied to up, and the gate is left out", 1, silu(up)
    yield "combined", "the product is that of up plus 1", 1, silu(gate) * (up + 1)
    yield "combined", "the product is taken twice", 1, silu(gate) * up * 2


def _with_a_number(parts: _Parts) -> Iterator[tuple[str, str, int, Array]]:
    """Curves with a number of their own, fitted."""
    gate, up, x = parts.gate, parts.up, parts.x
    slope = _best(lambda s: gate * sigmoid(s * gate) * up, x, SLOPES)
    said = f"the activation is a * sigmoid({slope:.5g} a), not SiLU"
    yield "fitted", said, 1, gate * sigmoid(slope * gate) * up
    leak = _least(x, np.minimum(gate, 0) * up, np.maximum(gate, 0) * up)
    said = f"the activation is leaky ReLU with slope {leak:.5g}, not SiLU"
    yield "fitted", said, 1, np.where(gate > 0, gate, leak * gate) * up
    for what, clipped in _clipped(parts):
        bound, made = clipped
        yield "fitted", f"{what} beyond {bound:.6g} is clipped", 1, made


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


def _clipped(parts: _Parts) -> Iterator[tuple[str, tuple[float, Array]]]:
    """Gate, up or the product held within bounds: the largest that is seen tells where."""
    gate, up, x = parts.gate, parts.up, parts.x
    bound = float(np.abs(x).max())
    whole = _silu(gate) * up
    yield "the product", (bound, np.clip(whole, -bound, bound))
    with np.errstate(all="ignore"):
        of_up = np.abs(x / _silu(gate))
        of_gate = x / up
    for what, make, sizes in (
        ("up", lambda c: _silu(gate) * np.clip(up, -c, c), of_up),
        ("the gate", lambda c: _silu(np.minimum(gate, c)) * up, of_gate),
        ("the gate, on either side,", lambda c: _silu(np.clip(gate, -c, c)) * up, of_gate),
    ):
        top = _level(sizes, np.abs(up) if what == "up" else gate, what)
        if top is not None:
            yield what, (top, make(top))


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
