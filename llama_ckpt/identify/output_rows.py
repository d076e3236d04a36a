"""Which row of which matrix each output of a product is.

Each output, over all rows of the tensor, is looked up among the products of the same input with every row of
the matrices that could stand in its place: its own, those beside it, the same of other blocks. What is found
is said by rule where there is one: an order, a head for another, runs as a fused matrix is cut. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.lookup import nearest_columns
from llama_ckpt.identify.offering import Change, Offer, features_off, offered
from llama_ckpt.identify.operands import Product
from llama_ckpt.identify.permutations import named_order, orders
from llama_ckpt.identify.sources import Source, sources_of, turned_sources
from llama_ckpt.listing import listed, which

__all__ = ["other_rows"]

Array: TypeAlias = NDArray[Any]

MOST_RUNS = 12
"""A matrix cut in the wrong place gives so many runs at most; of more a few outputs are said."""

MOST_LOOKED_UP = 8192
"""So many outputs are looked up one by one."""

SAMPLE = 48
"""So many outputs tell whether an order is worth to be looked at whole."""

PERMUTED = "rows permuted where a checkpoint's layout is converted"
FUSED = "splitting a fused matrix"


@dataclass(frozen=True)
class Run:
    """Outputs `first` to `last` are rows of one source, from `row` on in steps of `step`."""

    first: int
    last: int
    source: Source
    row: int
    step: int

    def said(self) -> str:
        """A clause."""
        outputs = f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"
        end = self.row + self.step * (self.last - self.first)
        of = "" if self.source.own else f" of {self.source.name}"
        rows = f"row {self.row}" if self.first == self.last else f"rows {self.row} to {end}"
        if self.source.zero:
            return f"{outputs} {'is' if self.first == self.last else 'are'} zero"
        return f"{outputs} {'is' if self.first == self.last else 'are'} {rows}{of}"


def other_rows(product: Product) -> Iterator[Offer]:
    """What gives each output another row."""
    sources, fits = list(sources_of(product)), False
    for offer in (*_in_another_order(product), *_another_matrix(product, sources)):
        fits |= product.fits(offer.p)
        yield offer
    if not fits:
        yield from _looked_up(product, sources)


def _another_matrix(product: Product, sources: Sequence[Source]) -> Iterator[Offer]:
    fits = False
    for source in sources:
        if not source.own and source.made.shape == product.o.shape:
            fits |= product.fits(source.made)
            yield from offered(product, source.made, _of_another(product, source))
    for source in () if fits else turned_sources(product):
        if product.fits(source.made):
            change = _of_another(product, source)
            yield from offered(product, source.made, replace(change, sentence=f"the matrix is {source.name}"))


def _of_another(product: Product, source: Source) -> Change:
    parameters = {"matrix": source.field, "block": source.block}
    code = "the loop that loads blocks" if source.block != product.block else "names of tensors"
    beside = source.field if source.block == product.block else f"that of block {source.block}"
    sentence = f"the matrix is {beside}"
    return Change("product.matrix", sentence, 1, parameters, code)


def _in_another_order(product: Product) -> Iterator[Offer]:
    """Orders that a rule gives, of all outputs."""
    few = np.unique(np.linspace(0, product.o.shape[1] - 1, SAMPLE).astype(np.int64))
    x = product.x[:, few]
    allowed = 0.25 * float(np.linalg.norm(product.error[:, few])) + product.noise
    for order in (*_moved(product), *orders(product.o.shape[1], product.heads)):
        if np.linalg.norm(x - product.o[:, order.taken[few]]) > allowed:
            continue
        said = f"outputs {order.sentence}"
        change = Change("product.order", said, order.numbers, {"rows": order.taken.tolist()}, PERMUTED)
        yield from offered(product, product.o[:, order.taken], change, part=False)


def _moved(product: Product) -> Sequence[Any]:
    """The shift by which all outputs would be moved, from their correlation."""
    spectrum = np.fft.rfft(product.x, axis=1) * np.conj(np.fft.rfft(product.o, axis=1))
    together = np.fft.irfft(spectrum.sum(axis=0), product.x.shape[1])
    by = int(np.argmax(together))
    found = named_order((np.arange(product.x.shape[1]) - by) % product.x.shape[1]) if by else None
    return [] if found is None else [found]


def _looked_up(product: Product, sources: Sequence[Source]) -> Iterator[Offer]:
    """Each output that is off, looked up among all rows of all sources."""
    off = features_off(product)
    if not 0 < len(off) <= MOST_LOOKED_UP:
        return
    found = nearest_columns(product, off, sources)
    if found is None:
        return
    source_of, row_of, known = found
    if not known.any():
        return
    p = product.o.copy()
    own = next(i for i, source in enumerate(sources) if source.own)
    taken_from = np.full(product.o.shape[1], own)
    row = np.arange(product.o.shape[1])
    taken_from[off[known]], row[off[known]] = source_of[known], row_of[known]
    if (taken_from == own).all() and (row == np.arange(len(row))).all():
        return  # each is its own row still, off by something else
    for j in off[known]:
        source = sources[taken_from[j]]
        p[:, j] = 0.0 if source.zero else source.made[:, row[j]]
    if ((taken_from == own) & (row == np.arange(len(row)))).all():
        return
    yield from offered(product, p, _said(product, sources, taken_from, row), part=False)


def _said(product: Product, sources: Sequence[Source], taken_from: Array, row: Array) -> Change:
    own = next(i for i, source in enumerate(sources) if source.own)
    n = product.o.shape[1]
    parameters = {
        "rows": row.tolist(),
        "matrices": [sources[i].name for i in np.unique(taken_from)],
        "matrix": np.searchsorted(np.unique(taken_from), taken_from).tolist(),
    }
    moved = np.flatnonzero((taken_from != own) | (row != np.arange(n)))
    zero = [i for i, source in enumerate(sources) if source.zero]
    if np.isin(taken_from[moved], zero).all():
        return _stays_zero(product, moved, parameters)
    if (change := _of_heads(product, sources, taken_from, row, moved, parameters)) is not None:
        return change
    if (taken_from == own).all() and (order := named_order(row, product.heads)) is not None:
        said = f"outputs {order.sentence}"
        return Change("product.order", said, order.numbers, parameters, PERMUTED)
    runs = [run for run in _runs(sources, taken_from, row) if _changes(run)]
    if len(runs) <= MOST_RUNS:
        said = f"outputs {listed([run.said() for run in runs])}"
        return Change("product.cut", said, 3 * len(runs), parameters, _code_of(runs, product))
    few = ", ".join(Run(j, j, sources[taken_from[j]], int(row[j]), 1).said() for j in moved[:4])
    said = f"{len(moved)} of {n} outputs are other rows: {few}, …"
    return Change("product.rows", said, len(moved), parameters, PERMUTED)


def _stays_zero(product: Product, moved: Array, parameters: dict[str, Any]) -> Change:
    n = product.o.shape[1]
    said = f"{which('output', moved, n)} {'is' if len(moved) == 1 else 'are'} zero"
    tile = _tile(moved, n)
    if tile:
        said += f": a tile of {tile} is left out"
    return Change("product.zero", said, 2, parameters, "the edge of a kernel's tiles")


def _tile(moved: Array, n: int) -> int:
    """The size of a tile that these outputs are one of, or the last part of one; 0 where they are none."""
    first, count = int(moved[0]), len(moved)
    if int(moved[-1]) - first + 1 != count:
        return 0
    tiles = [tile for tile in (256, 128, 64, 32, 16, 8, 4) if first % tile == 0]
    whole = [tile for tile in tiles if count == tile]
    cut = [tile for tile in tiles if first + count == n and n % tile == count]
    return next(iter((*whole, *cut)), 0)


def _of_heads(
    product: Product,
    sources: Sequence[Source],
    taken_from: Array,
    row: Array,
    moved: Array,
    parameters: dict[str, Any],
) -> Change | None:
    """Whole heads that are other heads of one matrix."""
    heads = product.heads
    if heads < 2:
        return None
    within = product.o.shape[1] // heads
    wrong = np.unique(moved // within)
    said = []
    for head in wrong:
        part = slice(head * within, (head + 1) * within)
        first, source = int(row[part][0]), int(taken_from[part][0])
        whole = np.array_equal(row[part], first + np.arange(within)) and (taken_from[part] == source).all()
        if not whole or first % within or sources[source].zero:
            return None
        of = "" if sources[source].own else f" of {sources[source].name}"
        said.append(f"head {head} is head {first // within}{of}")
    if len(said) > MOST_RUNS:
        return None
    return Change("product.heads", listed(said), 2 * len(said), parameters, "numbering of heads")


def _changes(run: Run) -> bool:
    return not run.source.own or run.row != run.first or run.step != 1


def _runs(sources: Sequence[Source], taken_from: Array, row: Array) -> Iterator[Run]:
    first, n = 0, len(row)
    while first < n:
        last, step = first, 1
        if first + 1 < n and taken_from[first + 1] == taken_from[first]:
            step = int(row[first + 1] - row[first])
        zero = sources[taken_from[first]].zero
        while (
            last + 1 < n
            and taken_from[last + 1] == taken_from[first]
            and (zero or row[last + 1] - row[last] == step)
        ):
            last += 1
        yield Run(first, last, sources[taken_from[first]], int(row[first]), step if last > first else 1)
        first = last + 1


def _code_of(runs: Sequence[Run], product: Product) -> str:
    beside = any(run.source.block == product.block and not run.source.own for run in runs)
    return f"{FUSED}, or cutting it over ranks" if beside else "indexing of the matrix's rows"
