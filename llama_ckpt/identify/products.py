"""Which row of which matrix each output is, and which columns were summed with which weight.

A call makes several products. Each that is wrong, on what went into it, is looked at by itself; what was done
alike to several is one change. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from llama_ckpt.identify.affine import another_factor, other_factors
from llama_ckpt.identify.beyond_rows import past_the_rows
from llama_ckpt.identify.columns import other_columns
from llama_ckpt.identify.inputs import another_input
from llama_ckpt.identify.misread import misplaced_matrices, misread_matrix
from llama_ckpt.identify.offering import Offer, offered
from llama_ckpt.identify.operands import Product, products_of, tensors
from llama_ckpt.identify.output_rows import other_rows
from llama_ckpt.identify.places import NOWHERE
from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.identify.rounded_products import rounded_products
from llama_ckpt.judging.matching import passes
from llama_ckpt.listing import listed

__all__ = ["product_guesses"]

Family: TypeAlias = Callable[[Product], Iterator[Offer]]

FAMILIES: tuple[Family, ...] = (
    another_factor,
    other_rows,
    another_input,
    other_columns,
    past_the_rows,
    misread_matrix,
    other_factors,
    rounded_products,
)
"""What may have been done to a product, the cheapest first."""


def product_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where products of the call are wrong."""
    wrong = [product for product in products_of(asked) if product.wrong]
    if not wrong:
        return
    first = list(_offers(wrong[0]))
    if not any(wrong[0].fits(offer.p) for offer in first):
        together = [_guess(asked, offers) for offers in misplaced_matrices(wrong)]
        yield from together
        if together:
            return
    found = {wrong[0].point: first} | {product.point: list(_offers(product)) for product in wrong[1:]}
    for product in wrong:
        if not any(product.fits(offer.p) for offer in found[product.point]):
            found[product.point] += list(_as_another(product, list(found.values())))
    first = found[wrong[0].point]
    if len(wrong) == 1:
        point = wrong[0].point
        yield from (_guess(asked, {point: offer}) for offer in found[point])
        return
    whole = {p.point: [one for one in found[p.point] if passes(p.x, one.p, p.limit)] for p in wrong}
    if all(whole.values()):
        yield from _together(asked, whole)
    yield from (_guess(asked, {wrong[0].point: offer}) for offer in first)


def _as_another(product: Product, others: Iterable[Sequence[Offer]]) -> Iterator[Offer]:
    """The order of columns that another product of the call has: one slip made both."""
    for offer in (one for offers in others for one in offers):
        taken = offer.change.parameters.get("inputs")
        if taken is not None and len(taken) == product.a.shape[1]:
            yield from offered(product, product.a[:, taken] @ np.asarray(product.w).T, offer.change)


def _offers(product: Product) -> Iterator[Offer]:
    for family in FAMILIES:
        fits = False
        for offer in family(product):
            fits |= product.fits(offer.p, 1.0) and not product.fits(product.o, 1.0)
            yield offer
        if fits:  # the families are too different to explain the same
            return


def _together(asked: Asked, whole: Mapping[str, Sequence[Offer]]) -> Iterator[Guess]:
    """What explains each of several products: by the same kind of change, else each by its own."""
    kinds = [{one.change.kind for one in offers} for offers in whole.values()]
    for kind in set.intersection(*kinds):
        yield _guess(asked, {point: _least(offers, kind) for point, offers in whole.items()})
    yield _guess(asked, {point: _least(offers) for point, offers in whole.items()})


def _least(offers: Sequence[Offer], kind: str = "") -> Offer:
    return min((one for one in offers if kind in ("", one.change.kind)), key=lambda one: one.change.numbers)


def _guess(asked: Asked, offers: Mapping[str, Offer]) -> Guess:
    """One guess of the changes of some products, by their points."""
    changes = {point: offer.change for point, offer in offers.items()}
    first = next(iter(offers.values()))
    made = tensors(asked, {point: offer.p for point, offer in offers.items()})
    points: dict[str, list[str]] = {}
    for point, change in changes.items():
        points.setdefault(change.sentence, []).append(point)
    sentence = "; ".join(f"{listed(names)}: {said}" for said, names in points.items())
    numbers = sum({change.sentence: change.numbers for change in changes.values()}.values())
    return Guess(
        first.change.kind,
        sentence,
        made,
        numbers,
        first.place if len(offers) == 1 else NOWHERE,
        first.change.parameters if len(offers) == 1 else {p: dict(c.parameters) for p, c in changes.items()},
        first.change.code,
        first.change.would_tell,
    )
