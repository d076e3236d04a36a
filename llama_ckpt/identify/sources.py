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

__all__ = ["Source", "other_blocks", "sources_of"]

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
    given = product.asked.given
    for field in MATRIX_OF.values():
        w = given.get(field)
        if field != product.field and w is not None and _reads_the_same(w, product):
            yield Source(field, product.block, field, product.a @ np.asarray(w).T)
    for number in other_blocks(product.asked):
        w = getattr(weights.blocks[number], product.field)
        yield Source(product.field, number, f"{product.field} of block {number}", product.a @ np.asarray(w).T)


def _reads_the_same(w: Any, product: Product) -> bool:
    return np.ndim(w) == 2 and np.shape(w)[1] == product.a.shape[1]


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
    size = config.width * (2 * config.q_width + 2 * config.kv_width + 3 * config.ffn)
    n = len(weights.blocks)
    likely = [own - 1, own + 1, 0, n - 1, n - 1 - own, (own + n // 2) % n]
    numbers = [b for b in dict.fromkeys([*likely, *range(n)]) if 0 <= b < n and b != own]
    return numbers[: int(MOST_READ // max(size, 1))]
