"""Where numbers left float16's range: which value, product or sum is beyond 65,504, and where.

numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.operands import Product, products_of, right_of, tensors
from llama_ckpt.identify.places import place_of
from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.judging.matching import leaves_at_most

__all__ = ["overflows"]

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

LARGEST = 65504.0
"""Of float16."""

ROUNDS_UP = 65520.0
"""From here on a number rounds to infinity."""

MOST_SUMS = 64
"""So many sums are followed term by term."""

CODE = "sums or tensors in float16; bfloat16 or float32 hold them"


def overflows(asked: Asked) -> Iterator[Guess]:
    """Guesses where a tensor is not finite."""
    bad = ~np.isfinite(asked.x)
    products = [product for product in products_of(asked) if product.point == asked.point]
    # Of numbers as large as these what their own inputs were rounded to is more than what is finite here.
    o = right_of(asked)
    beyond = np.abs(o) >= ROUNDS_UP
    if beyond.any() and (bad & beyond).any():
        yield _itself(asked, o, beyond)
    yield from _norm_of_squares(asked, bad)
    for product in products:
        yield from _inside_a_sum(asked, product)


def _itself(asked: Asked, o: Array, beyond: Mask) -> Guess:
    """Infinite where the value is beyond the range.

    Args:
        o: what it should be of what went in, as it was recorded.
    """
    x, limit = asked.x, asked.first.limit
    slack = 2 * max(limit.element_err, leaves_at_most(limit))
    if np.isfinite(slack):  # rounding decides on which side of the end a value near it falls
        near = np.abs(np.abs(o) - ROUNDS_UP) <= slack * max(ROUNDS_UP, float(np.sqrt(np.mean(o * o))))
        beyond = np.where(near, ~np.isfinite(x), beyond)
    at = tuple(int(i) for i in np.unravel_index(int(np.abs(o).argmax()), o.shape))
    p = np.where(beyond, np.copysign(np.inf, o), o)
    said = (
        f"{asked.point} is infinite where it is beyond float16's 65,504: {int(beyond.sum())} elements,"
        f" the largest {o[at]:,.0f} at {list(at)}"
    )
    made = {**_with_infinities(asked, p), asked.name: p}
    return Guess("any.overflow", said, made, 0, place_of(beyond, asked.name), code=CODE, part=False)


def _with_infinities(asked: Asked, p: Array) -> dict[str, Array]:
    with np.errstate(all="ignore"):
        return tensors(asked, {asked.point: p})


def _norm_of_squares(asked: Asked, bad: Mask) -> Iterator[Guess]:
    """A norm whose squares, or their sum, are beyond the range."""
    if asked.first.case.function != "rms_norm" or "x" not in asked.given:
        return
    x = np.asarray(asked.given["x"], np.float64)
    if x.shape != asked.x.shape:
        return
    sums = np.sum(x * x, axis=-1)
    over = sums >= ROUNDS_UP
    if not (over & bad.any(axis=-1)).any():
        return
    row = int(sums.argmax())
    p = np.where(over[:, None], asked.x, asked.o)
    said = f"the squares of row {row} sum up to {sums[row]:,.0f}, beyond float16's 65,504"
    yield Guess("any.overflow", said, {asked.name: p}, int(over.sum()), code=CODE, part=False)


def _inside_a_sum(asked: Asked, product: Product) -> Iterator[Guess]:
    """A sum over columns that is beyond the range on its way."""
    bad = np.argwhere(~np.isfinite(product.x))[:MOST_SUMS]
    if not len(bad):
        return
    w = np.asarray(product.w)
    reached = [np.cumsum(product.a[i] * w[j]) for i, j in bad]
    largest = [float(np.abs(one).max()) for one in reached]
    terms = [float(np.abs(product.a[i] * w[j]).max()) for i, j in bad]
    if min(max(a, b) for a, b in zip(largest, terms, strict=True)) < ROUNDS_UP:
        return
    k = int(np.argmax(largest))
    i, j = (int(n) for n in bad[k])
    column = int(np.argmax(np.abs(reached[k]) >= ROUNDS_UP))
    of = f"its exact value is {product.o[i, j]:,.6g}"
    said = (
        f"{product.point}: sums are beyond float16's 65,504 on their way: that of row {i}, output {j} reaches"
        f" {largest[k]:,.0f}, first at column {column}; {of}"
    )
    p = np.where(np.isfinite(product.x), product.o, product.x).reshape(product.shape)
    made = {**_with_infinities(asked, p), asked.name: p}
    lost = int((~np.isfinite(product.x)).sum())
    place = place_of(~np.isfinite(asked.x), asked.name)
    # Which elements are lost is what the sums themselves say, not what was read from the tensor.
    numbers = 0 if lost <= MOST_SUMS else lost
    yield Guess("any.overflow", said, made, numbers, place, code=CODE, part=False)
