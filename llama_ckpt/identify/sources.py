"""The matrices that could stand in the place of a product's own, each multiplied with the product's input.

Its own first, then those of the same block, fused ones too, then the same of other blocks, as many as are
cheap to read. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.operands import MATRIX_OF, Product
from llama_ckpt.identify.record import Asked

__all__ = ["Source", "beside", "other_blocks", "sources_of", "turned_sources"]

Array: TypeAlias = NDArray[Any]

MOST_READ = 1 << 24
"""Elements of other blocks that are read to be tried: dequantizing more takes seconds."""


@dataclass(frozen=True)
class Source:
    """A matrix on trial.

    Attributes:
        field, block: which it is.
        name: as a sentence has it.
        made: the product's input times its rows, `[n, out]`.
        own: it is the right one; zero: no matrix, but zeros.
    """

    field: str
    block: int | None
    name: str
    made: Array
    own: bool = False
    zero: bool = False


def sources_of(product: Product) -> Iterator[Source]:
    """All that are worth a try."""
    own = product.field if product.block is None else f"{product.field} itself"
    yield Source(product.field, product.block, own, product.o, own=True)
    yield Source("", product.block, "zeros", np.zeros((len(product.x), 1)), zero=True)
    weights = product.asked.around.weights
    if product.point == "logits":
        yield from _other_head(product, weights)
        return
    for field, w in beside(product):
        if np.shape(w)[1] == product.a.shape[1]:
            yield Source(field, product.block, field, product.a @ np.asarray(w).T)
    for number in other_blocks(product.asked):
        w = getattr(weights.blocks[number], product.field)
        yield Source(product.field, number, f"{product.field} of block {number}", product.a @ np.asarray(w).T)


def beside(product: Product) -> Iterator[tuple[str, Any]]:
    """The block's other matrices, by field: the call's own, and where they are cheap to read the others."""
    given, weights, number = product.asked.given, product.asked.around.weights, product.block
    block = weights.blocks[number] if number is not None and _cheap(product.asked) else None
    for field in MATRIX_OF.values():
        w = given.get(field, getattr(block, field, None))
        if field != product.field and np.ndim(w) == 2:
            yield field, w


def turned_sources(product: Product) -> Iterator[Source]:
    """Whole matrices that lie otherwise: transposed, or their numbers in rows of another length."""
    n_in, n_out = product.a.shape[1], product.o.shape[1]
    blocks = getattr(product.asked.around.weights, "blocks", ())
    others = [(b, product.field, getattr(blocks[b], product.field)) for b in other_blocks(product.asked)]
    for number, field, w in (*((product.block, *one) for one in beside(product)), *others):
        where = field if number == product.block else f"that of block {number}"
        if np.shape(w) == (n_in, n_out):
            yield Source(field, number, f"{where} transposed", product.a @ np.asarray(w))
        if np.size(w) == n_in * n_out and np.shape(w) != (n_out, n_in):
            read = np.asarray(w).reshape(n_out, n_in)
            yield Source(field, number, f"{where}, its numbers in rows of {n_in}", product.a @ read.T)


def _cheap(asked: Asked) -> bool:
    """Whether a whole block is cheap to read."""
    around = asked.around
    return around.weights is not None and around.config is not None and _size(around.config) <= MOST_READ


def _size(config: Any) -> int:
    return int(config.width * (2 * config.q_width + 2 * config.kv_width + 3 * config.ffn))


def _other_head(product: Product, weights: Any) -> Iterator[Source]:
    """The embedding in the place of an output matrix of its own."""
    weights = product.asked.given.get("weights", weights)
    table = getattr(weights, "token_embd", None)
    if table is not None and table is not getattr(weights, "output", None):
        yield Source("token_embd", None, "token_embd", product.a @ np.asarray(table).T)


def other_blocks(asked: Asked) -> list[int]:
    """The numbers of other blocks, the likeliest first, as many as are cheap to read."""
    weights, config, own = asked.around.weights, asked.around.config, asked.block
    if weights is None or config is None or own is None:
        return []
    n = len(weights.blocks)
    likely = [own - 1, own + 1, 0, n - 1, n - 1 - own, (own + n // 2) % n]
    numbers = [b for b in dict.fromkeys([*likely, *range(n)]) if 0 <= b < n and b != own]
    return numbers[: MOST_READ // max(_size(config), 1)]
