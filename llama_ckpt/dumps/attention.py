"""What was seen of one block's attention, put together from the calls that it made; numpy only.

An attention is either one fused call or two products, of which the second's left side are the
probabilities: they have the shape of the scores, which the first gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.scratch import in_scratch

__all__ = ["Attention", "Look", "Product", "Softmax", "attention_of", "of_one_token"]

Array: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Product:
    """One product of two tensors that are no weights: `a @ b`, with leading axes in common.

    Attributes:
        a, b, out: `[…, n, d]`, `[…, d, m]`, `[…, n, m]`, copied when it was made.
        dtypes: of the three.
        place: "first" or "second" where these axes are right for one of attention's two alone.
    """

    a: Array
    b: Array
    out: Array
    dtypes: tuple[str, str, str]
    place: str = ""


@dataclass(frozen=True)
class Softmax:
    """That one was made between two products, and over which axis: `last` is that of the keys."""

    last: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Attention:
    """What one block's attention was given and what it gave; None for what was not seen.

    Attributes:
        q: `[heads, n, head_dim]`; k, v: `[heads, keys, head_dim]`, with as many heads and keys as it had.
        scores, probs: `[heads, n, keys]`. context: `[heads, n, head_dim]`.
        dtypes: of each by name.
    """

    q: Array
    k: Array
    v: Array | None = None
    scores: Array | None = None
    probs: Array | None = None
    context: Array | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)


Look: TypeAlias = Product | Softmax | Attention
"""One call that tells something of attention."""


def attention_of(seen: Sequence[Look]) -> Attention | None:
    """One block's attention from what was seen in it; heads that were computed one by one are put together.

    None where there was none, or where both ways were gone, so that it can't be told what is what.
    """
    fused = [each for each in seen if isinstance(each, Attention)]
    pairs = list(_pairs(seen))
    if bool(fused) == bool(pairs):
        return None
    parts = fused or [_from_products(*pair) for pair in pairs]
    if len({(part.q.shape[1:], part.k.shape[1:]) for part in parts}) != 1:
        return None
    # Several of one head each are heads one by one; of the same queries they are the keys in pieces.
    if len(parts) > 1 and (any(len(part.q) != 1 for part in parts) or (parts[0].q == parts[1].q).all()):
        return None

    def together(name: str) -> Any:
        each = [getattr(part, name) for part in parts]
        if any(one is None for one in each):
            return None
        return each[0] if len(each) == 1 else in_scratch(np.concatenate(each))

    names = ("q", "k", "v", "scores", "probs", "context")
    return Attention(**{name: together(name) for name in names}, dtypes=parts[0].dtypes)


def of_one_token(seen: Attention, n: int | None) -> Attention:
    """Of a call of one token each query head as one of its own.

    Some programs lay the heads that share a key head where other calls have tokens.
    """
    group = seen.q.shape[1]
    if n != 1 or group == 1:
        return seen

    def apart(x: Array | None) -> Array | None:
        return None if x is None else x.reshape(-1, 1, x.shape[-1])

    return replace(
        seen,
        q=seen.q.reshape(-1, 1, seen.q.shape[-1]),
        scores=apart(seen.scores),
        probs=apart(seen.probs),
        context=apart(seen.context),
    )


def _pairs(seen: Sequence[Look]) -> Iterator[tuple[Product, Product]]:
    """The two products of an attention: what the first gives has the second's left side's shape.

    A softmax over another axis than the last says that rows are not the queries; two axes alone may be
    those of any product, so there one must stand between.
    """
    before: list[Product] = []
    between: list[Softmax] = []
    for each in seen:
        if isinstance(each, Softmax):
            between.append(each)
        elif isinstance(each, Product):
            first = next((one for one in reversed(before) if _fits(one, each)), None)
            rows_are_queries = all(one.last for one in between if math.prod(one.shape) == each.a.size)
            if first is not None and rows_are_queries and (between or each.a.ndim > 2):
                yield first, each
                before, between = [], []
            else:
                before.append(each)


def _fits(first: Product, second: Product) -> bool:
    if first.place == "second" or second.place == "first":
        return False
    return first.out.size == second.a.size and first.out.shape[-2:] == second.a.shape[-2:]


def _from_products(first: Product, second: Product) -> Attention:
    lead = np.broadcast_shapes(first.a.shape[:-2], first.b.shape[:-2])
    n, m = first.out.shape[-2:]
    q = np.broadcast_to(first.a, (*lead, *first.a.shape[-2:])).reshape(-1, *first.a.shape[-2:])
    k = first.b.swapaxes(-1, -2).reshape(-1, m, first.b.shape[-2])
    names = ("q", "k", "scores", "probs", "v", "context")
    return Attention(
        q,
        k,
        second.b.reshape(-1, *second.b.shape[-2:]),
        scores=first.out.reshape(-1, n, m),
        probs=second.a.reshape(-1, n, m),
        context=second.out.reshape(-1, n, second.out.shape[-1]),
        dtypes=dict(zip(names, first.dtypes + second.dtypes, strict=True)),
    )
