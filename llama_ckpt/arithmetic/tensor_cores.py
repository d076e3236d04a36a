"""Sums of fp8 products in Hopper's tensor cores: 32 at a time, aligned to the largest, cut off after 13 bits.

    e = the largest exponent of the 32 products and of the sum so far
    sum = cut(sum, 2^(e-13)) + Σ cut(product, 2^(e-13)), then cut to 13 bits behind its leading one

A product's exponent is the sum of its factors'. That such sums keep 14 bits was seen by DeepSeek-AI 2024,
https://arxiv.org/abs/2412.19437, section 3.3.2; the rule here gives what an H200 gave with torch 2.11's
_scaled_mm to float32's last bits (tests/arithmetic/test_tensor_cores.py). Without its use_fast_accum each 128
products are added to a sum in float32. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.floats import FLOATS, to_float

__all__ = ["FP8_SUMS", "fp8_products"]

Array: TypeAlias = NDArray[np.float64]

FP8_SUMS: Final[Mapping[str, int]] = MappingProxyType({"fp8 tensor cores": 128, "fp8 tensor cores, fast": 0})
"""A way of summing to the products between two additions in float32; 0: none in between."""

TOGETHER: Final = 32
"""Products that one instruction adds up."""

BITS: Final = 13
"""Behind the leading one of the largest."""

HELD: Final = 1 << 21
"""Products that are in memory at once, 16 MB an array."""


def fp8_products(x: Array, w: Array, sums: str) -> Array:
    """x wᵀ of numbers that are fp8 E4M3 times one scale a row or tensor.

    Args:
        x: `[..., in]`; w: `[out, in]`; both as `formats.rounded` gives them.
        sums: a key of FP8_SUMS.
    """
    rows = x.reshape(-1, x.shape[-1])
    (a, of_a), (b, of_b) = _unscaled(rows), _unscaled(w)
    some = max(1, HELD // (TOGETHER * len(b)))
    parts = [_summed(a[i : i + some], b, FP8_SUMS[sums]) for i in range(0, len(a), some)]
    y: Array = np.concatenate(parts) * of_a * of_b.T
    return y.reshape(*x.shape[:-1], len(w))


def _unscaled(x: Array) -> tuple[Array, Array]:
    """Rows of fp8 numbers and their scales, `[rows, 1]`: the largest of what shares one is fp8's largest."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    whole = float(largest.max(initial=0.0))
    if not whole:
        return x, np.ones_like(largest)
    scale = np.full_like(largest, whole / FLOATS["fp8_e4m3"].largest)
    found = to_float(x / scale, "fp8_e4m3")
    if not np.allclose(found * scale, x, rtol=1e-9, atol=0):  # the scale is not the tensor's, but each row's
        scale = np.where(largest > 0, largest, 1.0) / FLOATS["fp8_e4m3"].largest
        found = to_float(x / scale, "fp8_e4m3")
    return found, scale


def _summed(a: Array, b: Array, every: int) -> Array:
    """Of fp8 numbers, `[rows, out]`."""
    (_, of_a), (_, of_b) = np.frexp(a), np.frexp(b)
    kept, total = np.zeros((len(a), len(b))), np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], TOGETHER):
        some = slice(start, start + TOGETHER)
        products = a[:, None, some] * b[None, :, some]
        exponents = np.where(products != 0, of_a[:, None, some] + of_b[None, :, some] - 2, _LOWEST)
        largest = np.maximum(exponents.max(axis=-1), _exponent(kept))
        step = np.ldexp(1.0, largest - BITS)
        kept = (np.trunc(kept / step) + np.trunc(products / step[..., None]).sum(axis=-1)) * step
        step = np.ldexp(1.0, _exponent(kept) - BITS)
        kept = np.trunc(kept / step) * step
        if every and (start + TOGETHER) % every == 0:
            total += kept
            kept = np.zeros_like(kept)
    return total + kept


_LOWEST: Final = -100
"""Below every exponent that a product of two fp8 numbers has."""


def _exponent(x: Array) -> NDArray[np.intc]:
    """Of the leading bit."""
    _, exponent = np.frexp(x)
    return np.asarray(np.where(x != 0, exponent - 1, _LOWEST))
