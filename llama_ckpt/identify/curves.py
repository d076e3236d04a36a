"""Curves that people apply to a gate, by name, and the curve that was applied, measured.

numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["CURVES", "Curve", "measured_curve", "sigmoid", "smoothed"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Curve:
    """A curve and its name.

    Attributes:
        name: as people call it.
        function: from the gate to the factor on up.
    """

    name: str
    function: Callable[[Array], Array]


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a))."""
    e = np.exp(-np.abs(a))
    return np.asarray(np.where(a >= 0, 1.0, e) / (1.0 + e))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(a: Array) -> Array:
    return np.asarray(0.5 * a * (1.0 + _erf(a / math.sqrt(2.0))))


def _gelu_tanh(a: Array) -> Array:
    return np.asarray(0.5 * a * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (a + 0.044715 * a**3))))


def _softplus(a: Array) -> Array:
    return np.asarray(np.logaddexp(0.0, a))


def _elu(a: Array, below: float) -> Array:
    return np.asarray(np.where(a > 0, a, below * np.expm1(np.minimum(a, 0.0))))


CURVES: tuple[Curve, ...] = (
    Curve("SiLU", lambda a: a * sigmoid(a)),
    Curve("GELU by erf", _gelu),
    Curve("GELU by tanh", _gelu_tanh),
    Curve("quick GELU, a * sigmoid(1.702 a)", lambda a: a * sigmoid(1.702 * a)),
    Curve("sigmoid, without the gate itself", sigmoid),
    Curve("ReLU", lambda a: np.maximum(a, 0.0)),
    Curve("ReLU squared", lambda a: np.maximum(a, 0.0) ** 2),
    Curve("nothing: the gate itself", lambda a: a),
    Curve("1: the gate is not used", np.ones_like),
    Curve("tanh", np.tanh),
    Curve("softplus", _softplus),
    Curve("mish, a * tanh(softplus(a))", lambda a: a * np.tanh(_softplus(a))),
    Curve("hard swish, a * clip(a + 3, 0, 6) / 6", lambda a: a * np.clip(a + 3, 0, 6) / 6),
    Curve("hard sigmoid", lambda a: np.clip(a / 6 + 0.5, 0, 1)),
    Curve("ELU", lambda a: _elu(a, 1.0)),
    Curve("the gate's absolute value", np.abs),
    Curve("SELU", lambda a: 1.0507009873554805 * _elu(a, 1.6732632423543772)),
    Curve("SiLU twice", lambda a: a * sigmoid(a) * sigmoid(a * sigmoid(a))),
    Curve("SiLU with the sign of its exponent turned, a * sigmoid(-a)", lambda a: a * sigmoid(-a)),
    Curve("softsign, a / (1 + |a|)", lambda a: a / (1 + np.abs(a))),
    Curve("exp", lambda a: np.exp(np.minimum(a, 700.0))),
)
"""SiLU, which is right, first."""


def smoothed(gate: Array, factor: Array, weight: Array) -> Array:
    """Each element's factor as its neighbours in the order of the gate have it, without itself.

    Near what it is where the factor is a curve of the gate, and far where it is none.

    Args:
        gate, factor: of one shape; weight: how far each can be relied on.
    """
    order = np.argsort(gate, axis=None, kind="stable")
    x, w = gate.ravel()[order], weight.ravel()[order]
    y = np.where(w > 0, factor.ravel()[order], 0.0)
    made, reach = np.zeros(len(x)), 4
    for i in range(len(x)):
        near = np.arange(max(0, i - reach), min(len(x), i + reach + 1))
        near = near[(near != i) & (w[near] > 0)]
        if len(near):
            made[i] = _line_at(x[near], y[near], w[near], float(x[i]))
    found = np.empty(len(x))
    found[order] = made
    return found.reshape(gate.shape)


def _line_at(x: Array, y: Array, w: Array, at: float) -> float:
    """A straight line through weighted points, there."""
    total = float(w.sum())
    mean = float((w * x).sum()) / total, float((w * y).sum()) / total
    spread = float((w * (x - mean[0]) ** 2).sum())
    slope = float((w * (x - mean[0]) * (y - mean[1])).sum()) / spread if spread > 0 else 0.0
    return mean[1] + slope * (at - mean[0])


POINTS = 48
"""So many points of a curve are drawn."""


def measured_curve(gate: Array, up: Array, made: Array) -> Mapping[str, Any]:
    """The factor on up over the gate, as points for a picture, and how far it is from being a curve at all.

    Args:
        gate, up, made: of one shape.

    Returns:
        `x`, `y`: of some elements, in the order of the gate. `scatter`: the relative
        distance of neighbours' factors, 0 for a curve.
    """
    big = np.abs(up) >= np.quantile(np.abs(up), 0.3)
    x, y = gate[big].ravel(), (made[big] / up[big]).ravel()
    finite = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[finite], kind="stable")
    x, y = x[finite][order], y[finite][order]
    if not len(x):
        return {"x": [], "y": [], "scatter": float("inf")}
    points = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).astype(np.int64))
    scatter = float(np.median(np.abs(np.diff(y)))) if len(y) > 1 else 0.0
    return {
        "x": [float(x[i]) for i in points],
        "y": [float(y[i]) for i in points],
        "scatter": scatter / (float(np.median(np.abs(y))) or 1.0),
    }
