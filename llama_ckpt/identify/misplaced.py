"""What of quantized matrices lies elsewhere than it is read from, in an order that no list has.

A product is linear in what each place of a block holds, so that the order is measured, from all wrong
products of a call at once: one slip made them all. Of the integers in a block of 32, of their high bits, and
of the group whose scale each column has; the rows whose scales each output has are looked up. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.column_sums import least_squares
from llama_ckpt.identify.misplaced_rows import other_rows_of
from llama_ckpt.identify.misreadings import LOW_BITS
from llama_ckpt.identify.operands import Product
from llama_ckpt.listing import some
from llama_ckpt.oracle.integer_blocks import BlockParts

__all__ = ["Misplaced", "misplaced"]

Array: TypeAlias = NDArray[Any]

BLOCK = 32
"""Integers whose order is measured."""

EQUATIONS = 1.5
"""So many for each number that is measured, at least."""

SURE = 0.2
"""A measured share of a place is 1 or 0 up to this."""

MOST_MEASURED = 2048
"""So many numbers are measured at most: columns times groups."""

SHOWN = 12
"""Places of an order that are said."""

Held: TypeAlias = Callable[[BlockParts], tuple[Array, Array]]
"""What the places of a matrix hold that may lie elsewhere, and what they hold besides, `[out, in]` each."""


@dataclass(frozen=True)
class Misplaced:
    """An order that explains what came out.

    Attributes:
        kind, sentence: as in `Misreading`.
        numbers: how many were read from the tensors.
        taken: each product's parts as they are taken, by its point.
    """

    kind: str
    sentence: str
    numbers: int
    taken: Mapping[str, BlockParts]


def misplaced(products: Sequence[Product]) -> Iterator[Misplaced]:
    """Orders that give what came out of these products of a call; nothing where none does."""
    alike = _alike(products)
    if not alike or not all(np.isfinite(product.x).all() for product, _ in alike):
        return
    rows = [other_rows_of(product, parts) for product, parts in alike]
    found = [one for one in rows if one is not None]
    if len(found) == len(rows):
        said, numbers = found[0].sentence, sum(one.numbers for one in found)
        taken = {p.point: one.parts for (p, _), one in zip(alike, found, strict=True)}
        yield Misplaced(found[0].kind, said, numbers, taken)
        return
    if alike[0][1].integers.shape[1] % BLOCK == 0:
        for one in (*_high_bits(alike), *_integers(alike)):
            yield one
            return
    yield from _groups(alike)


def _alike(products: Sequence[Product]) -> list[tuple[Product, BlockParts]]:
    """Those whose matrices are of the first one's type and width."""
    found: list[tuple[Product, BlockParts]] = []
    for product in products:
        parts = product.parts
        if parts is None:
            continue
        first = found[0][1] if found else parts
        same = parts.bits == first.bits and parts.integers.shape[1] == first.integers.shape[1]
        if same and parts.group == first.group and (parts.minimum is None) == (first.minimum is None):
            found.append((product, parts))
    return found


# -- of a block's integers ---------------------------------------------------------------------------


def _integers(alike: Sequence[tuple[Product, BlockParts]]) -> Iterator[Misplaced]:
    def held(p: BlockParts) -> tuple[Array, Array]:
        return p.meaning[p.integers], np.zeros(p.integers.shape)

    order = _order(alike, held)
    if order is not None:
        said = f"of each {BLOCK} integers those in places {_said(order)} are taken one after the other"
        taken = {p.point: replace(q, integers=_in_blocks(q.integers, order)) for p, q in alike}
        yield Misplaced("order", said, BLOCK, taken)


def _high_bits(alike: Sequence[tuple[Product, BlockParts]]) -> Iterator[Misplaced]:
    """Of integers of more than 4 bits, or 3, what lies apart from the rest."""
    first = alike[0][1]
    low, steps = LOW_BITS.get(first.bits), np.diff(first.meaning)
    if low is None or (steps != 1).any():
        return

    def high(p: BlockParts) -> Array:
        return np.asarray(p.integers >> low << low)

    order = _order(alike, lambda p: (high(p).astype(np.float64), p.meaning[p.integers - high(p)]))
    if order is not None:
        name = "fifth bits" if first.bits == 5 else "high bits"
        said = f"the {name} of each {BLOCK} integers are those of places {_said(order)}, one after the other"
        taken = {
            p.point: replace(q, integers=q.integers - high(q) + _in_blocks(high(q), order)) for p, q in alike
        }
        yield Misplaced("bits", said, BLOCK, taken)


def _order(alike: Sequence[tuple[Product, BlockParts]], held: Held) -> Array | None:
    """From which place of its block each is taken, `[32]`, the same in all; None where no such order is."""
    wanted = int(-(-EQUATIONS * BLOCK * BLOCK // len(alike[0][0].a)))
    columns, targets = [], []
    for product, parts in alike:
        few = np.unique(np.linspace(0, len(parts.integers) - 1, max(wanted, 1)).astype(np.int64))
        some_rows = _of_rows(parts, few)
        moved, still = held(some_rows)
        scale = np.repeat(some_rows.scale, parts.group, axis=1)
        rest = scale * still
        if some_rows.minimum is not None:
            rest += np.repeat(some_rows.minimum, parts.group, axis=1)
        a = product.a.reshape(len(product.a), -1, BLOCK)
        for r in range(len(few)):
            blocks = scale[r].reshape(-1, BLOCK)[:, :, None] * moved[r].reshape(-1, 1, BLOCK)
            columns.append(np.einsum("tbi,bij->tij", a, blocks).reshape(len(a), -1))
        targets.append((product.x[:, few] - product.a @ rest.T).T.ravel())
        wanted -= len(few)
        if wanted <= 0:
            break
    if wanted > 0:
        return None
    solved = least_squares(np.concatenate(columns), np.concatenate(targets))
    return _chosen(solved.reshape(BLOCK, BLOCK))


def _of_rows(parts: BlockParts, rows: Array) -> BlockParts:
    """Some rows of a matrix: the whole of a large one would take gigabytes."""
    minimum = None if parts.minimum is None else parts.minimum[rows]
    return replace(parts, integers=parts.integers[rows], scale=parts.scale[rows], minimum=minimum)


def _chosen(solved: Array) -> Array | None:
    """For each row the one place whose share is 1 where the others' are 0; None where there is none."""
    order = solved.argmax(axis=1)
    sure = np.zeros_like(solved)
    sure[np.arange(len(solved)), order] = 1.0
    if not np.isfinite(solved).all() or np.abs(solved - sure).max() > SURE:
        return None
    return np.asarray(order)


def _in_blocks(integers: Array, order: Array) -> Array:
    return np.asarray(integers.reshape(len(integers), -1, BLOCK)[:, :, order].reshape(integers.shape))


def _said(order: Array) -> str:
    return some(order.tolist(), SHOWN)


# -- of scales ---------------------------------------------------------------------------------------


def _groups(alike: Sequence[tuple[Product, BlockParts]]) -> Iterator[Misplaced]:
    """Each column has the scale of some group, the same group in all outputs."""
    first = alike[0][1]
    width, groups = first.integers.shape[1], first.scale.shape[1]
    equations = sum(product.x.size for product, _ in alike)
    if groups < 2 or width * groups > MOST_MEASURED or equations < EQUATIONS * width * groups:
        return
    gram, target = np.zeros((width * groups,) * 2), np.zeros(width * groups)
    for product, parts in alike:
        # The table's products fall apart into those of the inputs and those of what a column may hold.
        held = parts.meaning[parts.integers][:, :, None] * parts.scale[:, None, :]
        if parts.minimum is not None:
            held = held + parts.minimum[:, None, :]
        inputs = np.repeat(np.repeat(product.a.T @ product.a, groups, axis=0), groups, axis=1)
        flat = held.reshape(len(held), -1)
        gram += inputs * (flat.T @ flat)
        target += np.einsum("rc,rcg->cg", product.x.T @ product.a, held).ravel()
    try:
        solved = np.linalg.solve(gram, target)
        solved += np.linalg.solve(gram, target - gram @ solved)
    except np.linalg.LinAlgError:
        return
    order = _chosen(solved.reshape(width, groups))
    if order is None:
        return
    few = ", ".join(f"column {c} that of group {order[c]}" for c in _moved(order, first.group)[:4])
    said = f"columns have the scales of other groups than their own, as where act-order is ignored: {few}, …"
    yield Misplaced("scale", said, width, {p.point: _regrouped(q, order) for p, q in alike})


def _moved(order: Array, group: int) -> Array:
    return np.flatnonzero(order != np.arange(len(order)) // group)


def _regrouped(parts: BlockParts, order: Array) -> BlockParts:
    minimum = None if parts.minimum is None else parts.minimum[:, order]
    return replace(parts, scale=parts.scale[:, order], minimum=minimum)
