"""Rounding to fewer bits: each function takes float64 of any shape and gives float64 of the same.

A number is rounded once, from float64, to nearest; of two equally near ones to the even. What is beyond the
largest number of a format becomes infinite, as in IEEE 754; the fp8 formats are cut off there instead, as
whoever scales by the largest number of a row wants it. numpy only.

    float16   IEEE 754 binary16
    bfloat16  float32 without its low 16 bits
    tf32      float32 without its low 13 bits: what tensor cores take of a float32
    fp8       E4M3 without infinities, and E5M2: Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOATS", "FloatFormat", "high_and_low", "to_float"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format.

    Attributes:
        digits: of a number, the leading one, which is not stored, among them.
        smallest: the exponent of two of the smallest number above zero.
        largest: the largest finite number.
        saturates: whether what is beyond it becomes that number; else it becomes infinite.
        ties: where a number in the middle of two goes: to the one that is "even", or "away" from zero;
            "cut" for a format that digits are only cut off to.
    """

    digits: int
    smallest: int
    largest: float
    saturates: bool = False
    ties: str = "even"


_BFLOAT16 = FloatFormat(8, -133, (2 - 2.0**-7) * 2.0**127)
_TF32 = FloatFormat(11, -136, (2 - 2.0**-10) * 2.0**127)

FLOATS: Final[Mapping[str, FloatFormat]] = MappingProxyType(
    {
        "float32": FloatFormat(24, -149, (2 - 2.0**-23) * 2.0**127),
        "float16": FloatFormat(11, -24, 65504.0),
        "bfloat16": _BFLOAT16,
        "tf32": _TF32,
        "tf32-away": FloatFormat(_TF32.digits, _TF32.smallest, _TF32.largest, ties="away"),
        "tf32-cut": FloatFormat(_TF32.digits, _TF32.smallest, _TF32.largest, ties="cut"),
        "fp8_e4m3": FloatFormat(4, -9, 448.0, saturates=True),
        "fp8_e5m2": FloatFormat(3, -16, 57344.0, saturates=True),
    }
)
"""The formats by name. `tf32` is what cuBLAS makes of a float32; `tf32-away` CUDA's instruction cvt.rna.tf32,
`tf32-cut` what a tensor core makes of a float32 that nobody rounded."""


def to_float(x: Array, name: str) -> Array:
    """Every number of x as the format has it; a NaN stays one."""
    found = FLOATS[name]
    _, exponent = np.frexp(x)  # |x| is in [2^(exponent - 1), 2^exponent)
    step = np.ldexp(1.0, np.maximum(exponent - found.digits, found.smallest))
    with np.errstate(invalid="ignore"):  # an infinity stays one
        rounded = np.where(np.isfinite(x), _whole(x / step, found.ties) * step, x)
    beyond = np.abs(rounded) > found.largest
    limit = found.largest if found.saturates else np.inf
    result: Array = np.where(beyond, np.copysign(limit, rounded), rounded)
    return result


def _whole(x: Array, ties: str) -> Array:
    if ties == "even":
        return np.rint(x)
    return np.trunc(x if ties == "cut" else x + np.copysign(0.5, x))


def high_and_low(x: Array, name: str) -> Array:
    """The sum of two numbers of a format: x rounded, and what that leaves, rounded."""
    high = to_float(x, name)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(high), high + to_float(x - high, name), high)
