"""What a product read in the place of its input, and how its matrix lay.

The tensors around it, its own input with rows or columns in another order, rounded, or multiplied with the
matrix's transpose. Where there are as many outputs as inputs the input that was read follows from what came
out, and columns in any order are found by it. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.misreadings import block_orders
from llama_ckpt.identify.offering import Change, Offer, columns_place, offered
from llama_ckpt.identify.operands import Product
from llama_ckpt.identify.permutations import named_order, orders
from llama_ckpt.identify.places import NOWHERE
from llama_ckpt.listing import which
from llama_ckpt.points import BLOCK_INPUT, split_name

__all__ = ["another_input"]

Array: TypeAlias = NDArray[Any]

MOST_COMPUTED = 1 << 28
"""So many multiplications are spent on orders of columns."""

UNPACKED = "the kernel that unpacks the matrix's blocks"

TELLING = 64
"""So many outputs tell whether an order is worth to be looked at whole."""


def another_input(product: Product) -> Iterator[Offer]:
    """Other inputs, and other ways to lie."""
    if not np.isfinite(product.x).all():
        return
    yield from _transposed(product)
    yield from _of_other_rows(product)
    yield from _another_tensor(product)
    yield from _columns_in_order(product)
    yield from _columns_looked_up(product)


def _transposed(product: Product) -> Iterator[Offer]:
    """The matrix used as its transpose, or its numbers read in the transpose's order."""
    w = np.asarray(product.w)
    said = "the matrix is read in its transpose's order, as [in, out] where it lies as [out, in]"
    p = product.a @ w.reshape(w.shape[::-1])
    change = Change("product.transposed", said, 0, {}, "a missing or doubled transpose")
    yield from offered(product, p, change)


def _of_other_rows(product: Product) -> Iterator[Offer]:
    """Rows that are other rows of the right product."""
    n = len(product.o)
    if n < 2:
        return
    distances = np.linalg.norm(product.x[:, None] - product.o[None], axis=2)
    taken = distances.argmin(axis=1)
    if np.array_equal(taken, np.arange(n)):
        return
    order = named_order(taken) if len(set(taken.tolist())) == n else None
    moved = np.flatnonzero(taken != np.arange(n))
    few = ", ".join(f"{i} is row {taken[i]}" for i in moved[:6]) + ", …" * (len(moved) > 6)
    said = f"rows {order.sentence}" if order else f"rows are others: {few}"
    numbers = order.numbers if order else 2 * len(moved)
    change = Change("product.rows_of_tokens", said, numbers, {"rows": taken.tolist()})
    yield from offered(product, product.o[taken], change)


def _another_tensor(product: Product) -> Iterator[Offer]:
    """A tensor of this block that is as wide."""
    n, width = product.a.shape
    asked = product.asked
    around = {
        **asked.around.theirs,
        **{split_name(one.name)[1]: one.x for one in asked.evidence},
    }
    for point, tensor in around.items():
        if point == product.point or np.size(tensor) != n * width or len(np.asarray(tensor)) != n:
            continue
        read = np.asarray(tensor, np.float64).reshape(n, width)
        if not np.isfinite(read).all() or np.array_equal(read, product.a):
            continue
        name = "the block's input" if point == BLOCK_INPUT else point
        change = Change(
            "product.input", f"it is made of {name} in place of its own input", 1, {"input": point}
        )
        yield from offered(product, read @ np.asarray(product.w).T, change)


def _columns_in_order(product: Product) -> Iterator[Offer]:
    """The matrix's columns in an order that a rule gives."""
    n, width = product.a.shape
    w = np.asarray(product.w)
    few = np.unique(np.linspace(0, len(w) - 1, TELLING).astype(np.int64))
    allowed = 0.25 * float(np.linalg.norm(product.error[:, few])) + product.noise
    heads = _heads_of_input(product)
    tried = 0
    for order in orders(width, heads):
        tried += n * width * len(few)
        if tried > MOST_COMPUTED:
            return
        if np.linalg.norm(product.x[:, few] - product.a[:, order.taken] @ w[few].T) > allowed:
            continue
        said = f"columns of the matrix meet other inputs: these {order.sentence}"
        change = _of_columns(product, order.taken, said, order.numbers)
        yield from offered(product, product.a[:, order.taken] @ w.T, change, part=False)


def _heads_of_input(product: Product) -> int:
    config = product.asked.around.config
    heads = getattr(config, "n_heads", 0) if product.point == "attn_out" else 0
    return heads if heads and product.a.shape[1] % heads == 0 else 0


def _code(product: Product) -> str:
    if product.point == "attn_out":
        return "the reshape of heads before the output projection"
    return "the order of columns that a quantized matrix was packed in"


def _of_columns(product: Product, taken: Array, said: str, numbers: int) -> Change:
    """Columns in another order; within the blocks of a quantized matrix it is that of its integers."""
    parameters = {"inputs": taken.tolist()}
    parts, places = product.parts, np.arange(len(taken))
    if parts is None or not np.array_equal(taken // parts.group, places // parts.group):
        return Change("product.column_order", said, numbers, parameters, _code(product))
    read, n = np.argsort(taken), len(taken)
    for size, order, sentence in block_orders():
        if n % size:
            continue
        blocks = read.reshape(-1, size) - places.reshape(-1, size)[:, :1]
        changed = (blocks != places[:size]).any(axis=1)
        if (blocks[changed] == order).all():
            columns = np.flatnonzero(np.repeat(changed, size))
            some = len(columns) < n
            where = f", in {which('column', columns, n)} alone" if some else ""
            place = columns_place(columns, n) if some else NOWHERE
            numbers = 1 + 2 * some
            return Change("weights.order", sentence + where, numbers, parameters, UNPACKED, columns=place)
    said = f"integers within blocks are read in another order: {said}"
    return Change("weights.order", said, numbers, parameters, UNPACKED)


def _columns_looked_up(product: Product) -> Iterator[Offer]:
    """Where outputs suffice: the input that was read, column by column, among those of the right one."""
    n, width = product.a.shape
    w = np.asarray(product.w)
    if len(w) < width or n < 2 or width > 1024:
        return
    try:
        read = np.linalg.lstsq(w, product.x.T, rcond=1e-10)[0].T
    except np.linalg.LinAlgError:
        return
    if not product.fits(read @ w.T, 4.0):
        return
    scale = np.maximum(np.linalg.norm(product.a, axis=0), 1e-30)
    distance = np.linalg.norm(read[:, :, None] - product.a[:, None, :], axis=0)
    taken = distance.argmin(axis=1)
    near = distance[np.arange(width), taken] <= 0.05 * scale[taken]
    if not near.all() or np.array_equal(taken, np.arange(width)) or len(set(taken.tolist())) < width:
        return
    moved = np.flatnonzero(taken != np.arange(width))
    few = ", ".join(f"{j} that of input {taken[j]}" for j in moved[:4]) + ", …" * (len(moved) > 4)
    said = f"{len(moved)} of the matrix's {width} columns meet other inputs: column {few}"
    change = _of_columns(product, taken, said, len(moved))
    yield from offered(product, product.a[:, taken] @ w.T, change)
