"""A product of rounded numbers: its inputs, its matrix or its result kept in fewer digits.

numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.formats import FORMATS, UNROUNDED, block_of, rounded
from llama_ckpt.identify.offering import Change, Offer, offered
from llama_ckpt.identify.operands import Product
from llama_ckpt.listing import listed

__all__ = ["rounded_products"]

Array: TypeAlias = NDArray[Any]

LARGEST = 0.3
"""A product that is further off than this, in parts of itself, is not rounded but wrong."""

MOST_ELEMENTS = 1 << 18
"""Of a larger matrix a few rows tell whether it is worth to be rounded in this way."""


def rounded_products(product: Product) -> Iterator[Offer]:
    """Roundings of what went in, of the matrix, and of what came out."""
    size = float(np.linalg.norm(product.o))
    if not np.isfinite(product.x).all() or np.linalg.norm(product.error) > LARGEST * size:
        return
    fits: dict[str, list[tuple[str, Array]]] = {}
    for what, name, p in _all(product):
        if product.fits(p):
            fits.setdefault(what, []).append((name, p))
        else:
            yield from offered(product, p, _change(what, name))
    for what, found in fits.items():
        found.sort(key=lambda one: float(np.linalg.norm(product.x - one[1])))
        names = [name for name, _ in found]
        yield from offered(product, found[0][1], _change(what, *names))


def _all(product: Product) -> Iterator[tuple[str, str, Array]]:
    """What is rounded, how, and the product with it."""
    w = np.asarray(product.w)
    for name in FORMATS:
        if name in UNROUNDED:
            continue
        if product.o.shape[1] % block_of(name) == 0:
            yield "result", name, rounded(product.o, name)
        if product.a.shape[1] % block_of(name):
            continue
        yield "input", name, rounded(product.a, name) @ w.T
        if w.size <= MOST_ELEMENTS or _worth(product, w, name):
            yield "matrix", name, product.a @ rounded(w, name).T


def _worth(product: Product, w: Array, name: str) -> bool:
    """Whether a few outputs of a large product fit."""
    few = np.unique(np.linspace(0, len(w) - 1, 32).astype(np.int64))
    left = float(np.linalg.norm(product.x[:, few] - product.a @ rounded(w[few], name).T))
    return left <= 4 * product.noise * float(np.sqrt(len(few) / len(w)))


def _change(what: str, name: str, *others: str) -> Change:
    alike = f" (or, alike here, to {listed(others)})" if others else ""
    parameters = {"what": what, "rounding": name, "alike": list(others)}
    return Change("product.rounded", f"its {what} is rounded to {name}{alike}", 1, parameters)
