"""What RoPE's frequencies say of the model that they are of: its theta, and its linear scaling.

A rotation is handed its frequencies, `theta^(-2i/d) / scale`, so that both are read back from them; an
explanation then never names the model's own number. numpy only.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MOST_NTK",
    "frequencies_of",
    "in_digits",
    "is_plain",
    "llama3_scaled",
    "same_number",
    "scale_of",
    "theta_of",
]

Array: TypeAlias = NDArray[Any]

MOST_NTK = 64
"""By more nobody scales: what gives such a number is no NTK scaling."""

SAME = 1e-6
"""Two numbers nearer than float32 has them are one."""


def same_number(a: float, b: float) -> bool:
    """Whether two parameters are one number: a model file holds them in float32."""
    return abs(a - b) <= SAME * max(abs(a), abs(b))


def in_digits(theta: float) -> str:
    """Its first six digits, as they are read: 1,000,000, not 1e+06."""
    return f"{float(f'{theta:.6g}'):,.0f}" if 1e5 <= abs(theta) < 1e12 else f"{theta:,.6g}"


def scale_of(frequencies: Array) -> float:
    """The linear scaling: pair 0 turns by 1 / scale radians a position."""
    return float(1 / frequencies[0])


def theta_of(frequencies: Array) -> float:
    """The base of frequencies `[pairs]`; NaN of a single pair, which has none."""
    if len(frequencies) < 2:
        return float("nan")
    return float((frequencies[0] / frequencies[-1]) ** (len(frequencies) / (len(frequencies) - 1)))


def is_plain(frequencies: Array) -> bool:
    """Whether each is the one before it times the same number: of a theta, with no divisors of their own."""
    steps = np.asarray(frequencies[1:]) / np.asarray(frequencies[:-1])
    return bool(np.allclose(steps, steps[:1], rtol=1e-5, atol=0))


def frequencies_of(theta: float, n_pairs: int, scale: float = 1.0) -> Array:
    """`theta^(-i / n_pairs) / scale` for each pair i, `[n_pairs]` float64."""
    return np.asarray(theta ** (-np.arange(n_pairs) / n_pairs) / scale)


def llama3_scaled(
    frequencies: Array, factor: float, *, low: float = 1.0, high: float = 4.0, context: int = 8192
) -> Array:
    """Frequencies as Llama 3.1 stretches them: slow pairs by `factor`, fast ones not, some in between.

    Args:
        factor: 8 in Llama 3.1, 32 in Llama 3.2; low, high: how often a pair must turn in `context`
            positions to be slow, and to be fast.
    """
    turns = context * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(frequencies * (kept + (1 - kept) / factor))
