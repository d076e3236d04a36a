"""What was done to a product afterwards: a factor or a number added, alike for all, for each output or row.

numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.offering import Change, Offer, offered
from llama_ckpt.identify.operands import Product
from llama_ckpt.identify.places import ranges
from llama_ckpt.listing import which

__all__ = ["another_factor", "factor_said", "factors_said", "other_factors"]

Array: TypeAlias = NDArray[Any]

ROOTS = (2, 3, 8, 12, 16, 32, 48, 64, 96, 128, 256, 2048, 4096)
"""Numbers whose square roots people multiply and divide by."""

NEAR = 1e-5
"""A factor so near to a number that people write is that number."""


def another_factor(product: Product) -> Iterator[Offer]:
    """Factors and numbers added."""
    x, o = product.x, product.o
    square = float(np.vdot(o, o))
    if not np.isfinite(x).all() or square == 0:
        return
    if not x.any():
        yield from offered(product, np.zeros_like(o), Change("product.zero", "it is all zeros"))
        return
    gain = float(np.vdot(x, o)) / square
    said = f"it is multiplied by {factor_said(gain)}"
    yield from offered(product, gain * o, Change("product.factor", said, 1, {"factor": gain}))
    if product.fits(gain * o) or len(x) < 2:
        return
    bias = float(product.error.mean())
    change = Change("product.added", f"{bias:.6g} is added to every output", 1, {"added": bias})
    yield from offered(product, o + bias, change)


def other_factors(product: Product) -> Iterator[Offer]:
    """A factor for each row or output, a bias; of a single row anything is one of these."""
    if len(product.x) < 2 or not np.isfinite(product.x).all():
        return
    for axis, noun in ((0, "row"), (1, "output")):
        x, o = product.x, product.o
        squares = np.sum(o * o, axis=1 - axis, keepdims=True)
        gains = np.sum(x * o, axis=1 - axis, keepdims=True) / np.where(squares > 0, squares, 1.0)
        yield from offered(product, gains * o, factors_said(gains.ravel(), noun), part=False)
    biases = np.mean(product.error, axis=0, keepdims=True)
    said = f"a bias is added, a number for each output, {biases.min():.4g} to {biases.max():.4g}"
    change = Change("product.bias", said, biases.size, {"bias": biases.ravel().tolist()})
    yield from offered(product, product.o + biases, change, part=False)


def factors_said(gains: Array, noun: str) -> Change:
    """A factor for each; said by the few that have one and the same, where that is so."""
    moved = np.flatnonzero(np.abs(gains - 1) > NEAR)
    parameters = {"factors": gains.tolist(), "of": noun}
    if 0 < len(moved) < len(gains) and np.ptp(gains[moved]) <= NEAR * abs(gains[moved[0]]):
        verb = "is" if len(moved) == 1 else "are"
        factor = factor_said(float(gains[moved].mean()))
        said = f"{which(noun, moved, len(gains))} {verb} multiplied by {factor}"
        return Change("product.factors", said, 1 + 2 * len(ranges(moved)), parameters)
    said = f"each {noun} is multiplied by a factor of its own, {gains.min():.6g} to {gains.max():.6g}"
    return Change("product.factors", said, len(gains), parameters)


def factor_said(factor: float) -> str:
    """A factor, as a root or a fraction where it is one: "0.125 = 1/8"."""
    if not np.isfinite(factor) or factor == 0:
        return f"{factor:.6g}"
    size, sign = abs(factor), "-" if factor < 0 else ""
    if 0 < abs(factor - 1) < NEAR:
        return f"1 {'+' if factor > 1 else '-'} {abs(factor - 1):.2g}"
    if abs(size - round(size)) <= NEAR * size and size >= 1:
        return f"{sign}{round(size)}"
    if abs(1 / size - round(1 / size)) <= NEAR / size:
        return f"{factor:.6g} = {sign}1/{round(1 / size)}"
    for n in ROOTS:
        if abs(size - n**0.5) <= NEAR * size:
            return f"{factor:.6g} = {sign}sqrt({n})"
        if abs(size - n**-0.5) <= NEAR * size:
            return f"{factor:.6g} = {sign}1/sqrt({n})"
    return f"{factor:.6g}"
