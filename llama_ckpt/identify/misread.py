"""How a quantized matrix was read: by a list of slips, and where none fits, what each integer was taken for.

A product is linear in what each integer stands for, so that this can be measured: 16 numbers for 4 bits,
from as many equations as the tensor has elements. A slip in some columns alone is found, too. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.column_sums import column_sums
from llama_ckpt.identify.misplaced import misplaced
from llama_ckpt.identify.misreadings import misreadings
from llama_ckpt.identify.offering import Change, Offer, columns_place, features_off, offered
from llama_ckpt.identify.operands import Product, products_of
from llama_ckpt.identify.places import NOWHERE
from llama_ckpt.listing import listed, which
from llama_ckpt.oracle.integer_blocks import BlockParts

__all__ = ["misplaced_matrices", "misread_matrix"]

Array: TypeAlias = NDArray[Any]

TELLING = 48
"""So many outputs tell whether a way to misread the matrix is worth to be looked at whole."""

WORTH = 0.5
"""What explains less of these outputs' error is not."""

MOST_MEASURED = 64
"""Integers of more meanings than this are not measured."""

CODE = "the kernel that unpacks the matrix's blocks"


def misread_matrix(product: Product) -> Iterator[Offer]:
    """Ways to read the matrix that give what came out."""
    off = features_off(product)
    parts = product.parts
    if parts is None or not len(off) or not np.isfinite(product.x).all():
        return
    few = off[np.unique(np.linspace(0, len(off) - 1, TELLING).astype(np.int64))]
    error = product.error[:, few]
    whole = float(np.vdot(error, error))
    right = parts.values(few)
    fits = False
    for one in misreadings(parts):
        taken = one.read(parts)
        step = taken.values(few) - right
        made = product.a @ step.T
        left = error - made
        change = Change(f"weights.{one.kind}", _said(product, one.sentence), 1, {"read": one.sentence}, CODE)
        if float(np.vdot(left, left)) < (1 - WORTH) * whole:
            for offer in offered(product, product.a @ _read(product, parts, taken).T, change):
                fits |= product.fits(offer.p)
                yield offer
        if not fits:
            for offer in _in_some_columns(product, parts, taken, step, error, change):
                fits |= product.fits(offer.p)
                yield offer
        if fits:
            return
    yield from _measured(product, parts, few)


def misplaced_matrices(wrong: Sequence[Product]) -> Iterator[dict[str, Offer]]:
    """Orders that all wrong products of a call have in common, by their points."""
    for found in misplaced(wrong):
        offers = {}
        for product in wrong:
            if product.point in found.taken and product.parts is not None:
                taken = found.taken[product.point]
                said = _said(product, found.sentence)
                change = Change(f"weights.{found.kind}", said, found.numbers, {"read": found.sentence}, CODE)
                p = product.a @ _read(product, product.parts, taken).T
                offers[product.point] = Offer(p, change, NOWHERE)
        yield offers


def _read(product: Product, parts: BlockParts, taken: BlockParts) -> Array:
    """The matrix as it was taken, with the file's own values where the parts differ in the last digit."""
    return np.asarray(np.asarray(product.w) + (taken.values() - parts.values()))


def _said(product: Product, sentence: str) -> str:
    """With the matrix's type, and the types of those in the call that are read rightly."""
    kind = _type(product)
    if not kind:
        return sentence
    others = [p for p in products_of(product.asked) if p.point != product.point]
    right = {_type(p) for p in others if not p.wrong} - {kind, ""}
    wrong = {_type(p) for p in others if p.wrong}
    if right and not (right & wrong):
        return f"{sentence}; the matrix is {kind}, of {listed(sorted(right))} they are right here"
    return f"{sentence}; the matrix is {kind}"


def _type(product: Product) -> str:
    """The file's type of the matrix; empty where nobody knows it."""
    return str(getattr(product.w, "weight_type", None) or "")


def _in_some_columns(
    product: Product, parts: BlockParts, taken: BlockParts, step: Array, error: Array, change: Change
) -> Iterator[Offer]:
    """The slip in one run of columns alone."""
    sums, chosen = column_sums(product.a, step)
    target = error[:, chosen].ravel()
    inner, square = sums.ranges(target)
    whole = float(target @ target)
    left = np.where(np.triu(np.ones(inner.shape, np.bool_), 1), whole - 2 * inner + square, np.inf)
    first, end = np.unravel_index(int(np.argmin(left)), left.shape)
    if left[first, end] > 1e-3 * whole or (first == 0 and end == sums.cells):
        return
    columns = np.arange(int(sums.edges[first]), int(sums.edges[end]))
    w = np.asarray(product.w).copy()
    w[:, columns] = _read(product, parts, taken)[:, columns]
    named = which("column", columns, w.shape[1])
    some = replace(
        change,
        sentence=f"{change.sentence}, in {named} alone",
        numbers=change.numbers + 2,
        columns=columns_place(columns, w.shape[1]),
    )
    yield from offered(product, product.a @ w.T, some)


def _measured(product: Product, parts: BlockParts, few: Array) -> Iterator[Offer]:
    """What each integer was taken for, by least squares."""
    n = len(parts.meaning)
    integers = parts.integers[few]
    if n > MOST_MEASURED or product.x[:, few].size < 3 * n or integers.size * n > 1 << 24:
        return
    scaled = np.repeat(parts.scale[few], parts.group, axis=1)
    columns = np.stack(
        [(product.a @ np.where(integers == q, scaled, 0.0).T).ravel() for q in range(n)], axis=1
    )
    seen = np.flatnonzero(np.linalg.norm(columns, axis=0) > 0)
    minimum = 0.0
    if parts.minimum is not None:
        minimum = product.a @ np.repeat(parts.minimum[few], parts.group, axis=1).T
    solved = np.linalg.lstsq(columns[:, seen], (product.x[:, few] - minimum).ravel(), rcond=1e-10)[0]
    meaning = parts.meaning.copy()
    meaning[seen] = np.where(np.abs(solved - np.rint(solved)) < 0.02, np.rint(solved), solved)
    if np.allclose(meaning, parts.meaning, atol=0.02):
        return
    said = ", ".join(f"{q} is {meaning[q]:.4g} for {parts.meaning[q]:g}" for q in _differing(meaning, parts))
    parameters = {"meaning": meaning.tolist(), "right": parts.meaning.tolist()}
    change = Change(
        "weights.meaning", _said(product, f"integers are taken for others: {said}"), n, parameters, CODE
    )
    taken = replace(parts, meaning=meaning)
    yield from offered(product, product.a @ _read(product, parts, taken).T, change, part=False)


def _differing(meaning: Array, parts: BlockParts) -> list[int]:
    """The first few integers that are taken for others."""
    return [int(q) for q in np.flatnonzero(np.abs(meaning - parts.meaning) > 0.02)[:8]]
