"""Numbers that come from no weights of the file, but look drawn at random: a matrix that nobody loaded.

What a matrix of independent numbers makes of its inputs is as large in every direction of these, and unlike
what the right matrix makes. That is no explanation, which would give each number, but it tells what was
computed where nothing else does. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.operands import Product, products_of
from llama_ckpt.identify.record import Asked
from llama_ckpt.identify.sources import beside

__all__ = ["drawn_at_random"]

Array: TypeAlias = NDArray[Any]

MOST_DIRECTIONS, FEWEST = 16, 4
"""Directions of the inputs that are looked at; of fewer nothing can be told."""

OUTPUTS, FEATURES = 256, 32
"""So many outputs of a product, features of an embedding, at least: of fewer all look alike."""

UNEVEN = 2.0
"""So many times what chance makes of the sizes' differences is no chance."""

CHANCE = 5.0
"""So many standard deviations of chance."""

OTHER = 0.1
"""Numbers of the file in another order look drawn as well: their size is that of one of its matrices."""


def drawn_at_random(asked: Asked) -> str:
    """A sentence where the first wrong tensor is made of such numbers; else ""."""
    if asked.x.shape != asked.o.shape or not np.isfinite(asked.x).all():
        return ""
    if asked.first.case.function == "embed" and asked.x.ndim == 2:
        ids = np.asarray(asked.given["token_ids"])
        once = np.unique(ids, return_index=True)[1][: asked.x.shape[1] // 4]
        table = asked.given["weight"]
        size = _unrelated(asked.x[once], asked.o[once], [table]) if asked.x.shape[1] >= FEATURES else 0.0
        return _said("the rows of the embedding are", size, asked.x[once].size, INITIAL)
    for product in products_of(asked):
        if product.point == asked.point and product.x.shape[1] >= OUTPUTS:
            return _of_product(product)
    return ""


INITIAL: Mapping[str, float] = {"0.02": 0.02, "0.01": 0.01, "1": 1.0}
"""Standard deviations that weights are initialized with, whatever their shape."""


def _of_product(product: Product) -> str:
    n_in, n_out = product.a.shape[1], product.x.shape[1]
    u, s, _ = np.linalg.svd(product.a, full_matrices=False)
    k = min(MOST_DIRECTIONS, n_out // FEATURES, int(np.sum(s > 1e-3 * s[0])))
    theirs, right = (u[:, :k].T @ one / s[:k, None] for one in (product.x, product.o))
    size = _unrelated(theirs, right, [product.w, *(w for _, w in beside(product))])
    initial = {
        **INITIAL,
        f"1/sqrt({n_in})": n_in**-0.5,
        f"1/sqrt(3 * {n_in}), as torch has it": (3 * n_in) ** -0.5,
        f"sqrt(2/({n_in} + {n_out}))": (2 / (n_in + n_out)) ** 0.5,
    }
    return _said(f"{product.point}: the matrix is", size, theirs.size, initial)


def _unrelated(x: Array, o: Array, matrices: Sequence[Any]) -> float:
    """The size of numbers `x [k, n]` that look drawn, and have nothing to do with o; else 0.

    Args:
        matrices: the file's, whose numbers these may be in another order.
    """
    if len(x) < FEWEST or not x.any() or not o.any():
        return 0.0
    alike = float(np.vdot(x, o)) / float(np.linalg.norm(x) * np.linalg.norm(o))
    size = float(np.sqrt(np.mean(x * x)))
    if abs(alike) > CHANCE / np.sqrt(x.size) or not _is_even(x):
        return 0.0
    sizes = [float(np.linalg.norm(w)) / np.size(w) ** 0.5 for w in map(np.asarray, matrices)]
    return 0.0 if any(abs(size / one - 1) <= OTHER for one in sizes if one) else size


def _is_even(x: Array) -> bool:
    """Whether rows are as large as each other, unrelated and of mean 0, up to chance."""
    k, n = x.shape
    spread = x @ x.T / n
    size = float(np.trace(spread)) / k
    uneven = float(np.sum((spread / size - np.eye(k)) ** 2))
    mean = float(np.sum(x.mean(axis=1) ** 2)) / size
    return bool(uneven <= UNEVEN * k * (k + 1) / n and mean <= UNEVEN * UNEVEN * k / n)


def _said(what: str, size: float, numbers: int, initial: Mapping[str, float]) -> str:
    """Where the size is one that weights are initialized with, as nearly as so many numbers tell."""
    for said, one in initial.items():
        if size and abs(size / one - 1) <= CHANCE / (2 * numbers) ** 0.5:
            return (
                f"{what} like random numbers with a standard deviation of {said}, unrelated to the file's:"
                " initialized, and never loaded"
            )
    return ""
