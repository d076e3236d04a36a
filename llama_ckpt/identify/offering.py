"""What a change of a product would give: everywhere, or only where the tensor is off.

A kernel is often wrong in its last tile of rows or of outputs alone, and a file's other types are read
rightly: what a change predicts is then held against the part that is off, and the place
says which. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.operands import Product
from llama_ckpt.identify.places import NOWHERE, Place, elements_off, place_of, ranges

__all__ = ["Change", "Offer", "columns_place", "features_off", "offered", "rows_off"]

Array: TypeAlias = NDArray[Any]

PART = 0.9
"""What explains less of the error's square than this is not worth being weighed."""


@dataclass(frozen=True)
class Change:
    """What may have been done to a product.

    Attributes:
        sentence: without the product, which is said before it: "columns 3 to 7 are left out".
        kind, parameters, code, would_tell: as in `Guess`.
        numbers: how many were read from the tensor.
        columns: of the matrix, where some only are concerned.
    """

    kind: str
    sentence: str
    numbers: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    would_tell: str = ""
    columns: Place = NOWHERE


@dataclass(frozen=True)
class Offer:
    """A change with what the product would be.

    Attributes:
        p: the product with it, `[n, out]`.
        change, place: what was done, and where.
    """

    p: Array
    change: Change
    place: Place


def columns_place(numbers: Array, n: int) -> Place:
    """Columns of a matrix with n of them."""
    return Place(columns=ranges(numbers), sizes={"columns": n}, nouns={"columns": "column"})


def _elements_off(product: Product) -> NDArray[np.bool_]:
    return elements_off(product.x, product.o, product.limit)


def features_off(product: Product) -> Array:
    """The outputs that are off in any row."""
    return np.flatnonzero(_elements_off(product).any(axis=0))


def rows_off(product: Product) -> Array:
    """The rows that are off anywhere."""
    return np.flatnonzero(_elements_off(product).any(axis=1))


def offered(product: Product, p: Array, change: Change, *, part: bool = True) -> Iterator[Offer]:
    """The change everywhere, if that is near; else where the tensor is off; else as a part of the truth.

    Args:
        p: what the product would be with the change, `[n, out]`.
        part: whether it may be named as a part of the truth; what was fitted with many numbers may not.
    """
    if not np.isfinite(p).all():
        return
    if product.fits(p):
        yield Offer(p, change, change.columns)
        return
    off = _elements_off(product)
    rows, features = np.asarray(off.any(axis=1)), np.asarray(off.any(axis=0))
    for row_part, feature_part in ((False, True), (True, False), (True, True)):
        where = np.ones(off.shape, np.bool_)
        if feature_part:
            where &= _from_runs(features)[None, :]
        if row_part:
            where &= rows[:, None]
        if where.all() or not where.any():
            continue
        some = np.where(where, p, product.o)
        if product.fits(some):
            yield _in_a_part(product, some, change, where, row_part + feature_part)
            return
    if part and product.share(p) >= PART:
        yield Offer(p, change, change.columns)


def _from_runs(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """With the few unmarked ones between marked ones, which are near enough to be right by chance."""
    where = np.flatnonzero(marked)
    if not len(where):
        return marked
    whole = marked.copy()
    whole[where[0] : where[-1] + 1] = True
    return whole if marked.sum() >= 0.8 * whole.sum() else marked


def _in_a_part(product: Product, p: Array, change: Change, where: NDArray[np.bool_], axes: int) -> Offer:
    place = place_of(where.reshape(product.shape), product.name)
    said = f"{change.sentence}, in {place.said()} alone" if place.said() else change.sentence
    runs = sum(len(part) for part in place.parts.values())
    changed = replace(change, sentence=said, numbers=change.numbers + 2 * max(runs, axes))
    return Offer(p, changed, _joined(place, change.columns))


def _joined(place: Place, columns: Place) -> Place:
    if columns.columns is None:
        return place
    sizes, nouns = {**place.sizes, **columns.sizes}, {**place.nouns, **columns.nouns}
    return Place(place.rows, place.heads, place.features, place.keys, columns.columns, sizes, nouns)
