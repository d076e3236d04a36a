"""The product with a weight that made a wrong tensor: what it read, its matrix, and what comes after it.

    for product in products_of(asked):
        product.x, product.a, product.w        # theirs, its inputs, the matrix: x should be a @ w.T
    tensors(asked, {"ffn_gate": p})            # all of the call's tensors, were that product p

numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.record import Asked
from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.matching import leaves_at_most, passes
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.integer_blocks import BlockParts, parts_of_values
from llama_ckpt.points import split_name

__all__ = ["MATRIX_OF", "Product", "gated", "products_of", "right_of", "tensors"]

Array: TypeAlias = NDArray[Any]

MATRIX_OF: Mapping[str, str] = {
    "q": "wq",
    "k": "wk",
    "v": "wv",
    "attn_out": "wo",
    "ffn_gate": "w_gate",
    "ffn_up": "w_up",
    "ffn_out": "w_down",
    "logits": "output",
}
"""A product's point to the matrix that it is made with, as the weights name it."""

READS = {"attn_out": "attn_context", "ffn_out": "ffn_swiglu", "logits": "output_norm"}
"""Where a call makes its own product's input, the point that this is."""


@dataclass(frozen=True)
class Product:
    """A product `o = a @ w.T` that came out as x; all float64.

    Attributes:
        asked: what it is a part of.
        name: the full name of the wrong tensor.
        a: what went in, `[n, in]`: theirs where it was recorded.
        w: the matrix `[out, in]`, a `FileMatrix` where it comes from a file.
        x, o: theirs and what it should be of what went in, `[n, out]`.
        limit: what holds there.
        shape: of the tensor in its point's own axes.
    """

    asked: Asked
    name: str
    a: Array
    w: Array
    x: Array
    o: Array
    limit: Limit
    shape: tuple[int, ...]

    @property
    def point(self) -> str:
        """Its neutral name."""
        return split_name(self.name)[1]

    @property
    def block(self) -> int | None:
        """The number of its block; None outside the blocks."""
        return split_name(self.name)[0]

    @property
    def field(self) -> str:
        """The matrix, as the weights name it."""
        return MATRIX_OF[self.point]

    @cached_property
    def error(self) -> Array:
        """x - o."""
        return np.asarray(self.x - self.o)

    @cached_property
    def noise(self) -> float:
        """How far rounding may put x from what it should be, as a norm."""
        return leaves_at_most(self.limit) * float(np.linalg.norm(self.o))

    @cached_property
    def wrong(self) -> bool:
        """Whether rounding does not account for it."""
        return not passes(self.x, self.o, self.limit)

    @cached_property
    def parts(self) -> BlockParts | None:
        """What the matrix's blocks are made of; None where it has none that are known."""
        parts: BlockParts | None = getattr(self.w, "parts", None)
        return parts_of_values(np.asarray(self.w)) if parts is None else parts

    @property
    def heads(self) -> int:
        """Into how many heads the outputs are divided; 0 where they are not."""
        return self.shape[1] if len(self.shape) == 3 else 0

    def fits(self, p: Array, slack: float = 2.0) -> bool:
        """Whether a prediction is about as near as rounding leaves it: worth to be weighed."""
        with np.errstate(all="ignore"):
            left = float(np.linalg.norm(self.x - p))
        return bool(left <= slack * self.noise)

    def share(self, p: Array) -> float:
        """Of the error's square, how much a prediction explains."""
        whole = float(np.vdot(self.error, self.error))
        left = self.x - p
        return 1.0 - float(np.vdot(left, left)) / whole if whole > 0 else 1.0


def products_of(asked: Asked) -> Iterator[Product]:
    """Every product of the call, right or wrong."""
    for one in asked.evidence:
        point = split_name(one.name)[1]
        found = _product(asked, point) if point in MATRIX_OF else None
        if found is not None:
            yield found


def right_of(asked: Asked) -> Array:
    """What the first wrong tensor should be: a product of what went into it as they recorded that."""
    mine = (product for product in products_of(asked) if product.point == asked.point)
    return next((product.o.reshape(asked.o.shape) for product in mine), asked.o)


def _product(asked: Asked, point: str) -> Product | None:
    one = asked.of(point)
    if one is None or np.shape(one.x) != np.shape(one.o):
        return None
    x = np.asarray(one.x, np.float64).reshape(len(np.asarray(one.x)), -1)
    a, w = _input(asked, point), _matrix(asked, point)
    if a is None or w is None or len(a) != len(x) or w.shape != (x.shape[1], a.shape[1]):
        return None
    if not np.isfinite(a).all() or not np.isfinite(one.limit.err):
        return None  # made of what is no number, it shows nothing of what was done to it
    return Product(asked, one.name, a, w, x, a @ np.asarray(w).T, one.limit, np.shape(one.x))


def _input(asked: Asked, point: str) -> Array | None:
    """What the product read: theirs where that is finite, else what the call makes of its own."""
    if point not in READS:
        return np.asarray(asked.given["x"], np.float64) if "x" in asked.given else None
    read = READS[point]
    theirs, one = asked.theirs(read), asked.of(read)
    if theirs is not None and np.isfinite(theirs).all():
        a = theirs
    elif one is not None:
        a = np.asarray(one.o, np.float64)
    else:
        found = _made(asked, read)
        if found is None:
            return None
        a = found
    return a.reshape(len(a), -1)


def _made(asked: Asked, point: str) -> Array | None:
    """An inner tensor of the call that was not recorded, as the oracle shows it."""
    full = asked.first.case.taps.get(point)
    function = getattr(oracle, asked.first.case.function, None)
    if full is None or function is None:
        return None
    made: Array = asked.first.case.run(function)[full]
    return made


def _matrix(asked: Asked, point: str) -> Array | None:
    field, given = MATRIX_OF[point], asked.given
    w = given.get(field, getattr(given.get("weights"), field, None))
    return None if w is None else np.asanyarray(w)


def tensors(asked: Asked, made: Mapping[str, Array]) -> dict[str, Array]:
    """Every tensor of the call that would be another, were some of its tensors others.

    Args:
        made: those, by neutral name, in the point's own axes or flat.
    """
    found = {}
    for point, array in {**made, **_after(asked, made)}.items():
        one = asked.of(point)
        if one is not None:
            found[one.name] = np.asarray(array).reshape(np.shape(one.o))
    return found


def gated(gate: Array, up: Array) -> Array:
    """silu(gate) * up."""
    return np.asarray(oracle._gated(gate, up))


def _after(asked: Asked, made: Mapping[str, Array]) -> dict[str, Array]:
    """What the call computes from tensors of its own, by neutral name."""
    given, after = asked.given, dict[str, Array]()
    if "w_down" in given and {"ffn_gate", "ffn_up"} & made.keys() and "ffn_swiglu" not in made:
        x = np.asarray(given["x"], np.float64)
        gate, up = (
            made[point] if point in made else x @ np.asarray(given[w]).T
            for point, w in (("ffn_gate", "w_gate"), ("ffn_up", "w_up"))
        )
        after["ffn_swiglu"] = gated(gate, up)
    for point, field, end in (("ffn_swiglu", "w_down", "ffn_out"), ("attn_context", "wo", "attn_out")):
        read = {**made, **after}.get(point)
        if read is not None and field in given and end not in made:
            after[end] = np.reshape(read, (len(read), -1)) @ np.asarray(given[field]).T
    return after
