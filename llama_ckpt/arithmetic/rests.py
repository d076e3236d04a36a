"""Numbers in two parts, float16 and an 8-bit rest, and what a product makes of them.

    x = high + low          high: float16     low: what that leaves, in fp8
    x wᵀ = high high_wᵀ + coarse low_wᵀ + low coarse_wᵀ

What is multiplied with a rest is in 8 bits as well: `coarse` is `high` once more, in fp8. A rest counts 2,048
times, and all that is in 8 bits times a power of two on top, so that it falls into fp8's range. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.floats import FLOATS, to_float

__all__ = ["RESTS", "TwoParts", "product_in_parts", "rest_described", "two_parts"]

Array: TypeAlias = NDArray[np.float64]

RESTS: Final[Mapping[str, tuple[str, float]]] = MappingProxyType(
    {
        "float16+fp8_e5m2": ("fp8_e5m2", 1.0),
        "float16+fp8_e4m3": ("fp8_e4m3", 4.0),
        "float16+fp8_e4m3 per tensor": ("fp8_e4m3", 0.0),
    }
)
"""A name to the 8 bits and what they are multiplied by; 0: by the tensor's largest, as it fits into them."""

LIFTED: Final = 2048.0
"""What a rest is multiplied by: as large as the number itself, it does not fall below float16's range."""


@dataclass(frozen=True, eq=False)
class TwoParts:
    """Numbers `[..., in]`, float64.

    Attributes:
        high: in float16. low: what that leaves, in 8 bits. coarse: `high` in 8 bits.
    """

    high: Array
    low: Array
    coarse: Array

    @property
    def whole(self) -> Array:
        """What the two parts come to."""
        return self.high + self.low


def rest_described(name: str) -> str:
    """What such a rounding does, in a few words."""
    form, lift = RESTS[name]
    times = f"{LIFTED * lift:g}" if lift else f"{LIFTED:g} and the power of two that fits a tensor's largest"
    return f"float16, and what that leaves in {form}, times {times}; both once more in 8 bits for products"


def two_parts(x: Array, name: str) -> TwoParts:
    """Numbers as high and low, from float32."""
    form, lift = RESTS[name]
    wide = x.astype(np.float32).astype(np.float64)
    if not lift:
        largest = max(float(np.abs(wide).max(initial=0.0)), 1e-30)
        lift = 2.0 ** -np.ceil(np.log2(largest / FLOATS[form].largest))
    high = to_float(wide, "float16")
    with np.errstate(invalid="ignore"):  # an infinity leaves nothing that is a number
        low = to_float((wide - high) * (LIFTED * lift), form) / (LIFTED * lift)
    return TwoParts(high, low, to_float(high * lift, form) / lift)


def product_in_parts(linear: Callable[[Array, Any], Array], x: TwoParts, w: TwoParts) -> Array:
    """x wᵀ; the product of both rests, which nobody makes, is left out."""
    return linear(x.high, w.high) + (linear(x.coarse, w.low) + linear(x.low, w.coarse))
