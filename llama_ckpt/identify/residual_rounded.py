"""Residual sums whose numbers are rounded one way: most of them are exactly what that gives. numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.identify.residual_terms import SUMS, terms_of
from llama_ckpt.identify.rounded import DIRECTED, DROPS, goes, one_way
from llama_ckpt.listing import listed
from llama_ckpt.points import block_point

__all__ = ["one_way_sums"]

Array: TypeAlias = NDArray[Any]


def one_way_sums(asked: Asked, shown: Mapping[str, Array]) -> Iterator[Guess]:
    """The right sums, all rounded one way: most of their numbers are exactly what is predicted."""
    right = {}
    for point, (first, second) in SUMS.items():
        one, terms = asked.of(point), terms_of(asked, point, shown)
        if one is not None and first in terms and second in terms:
            right[point] = np.asarray(one.x, np.float64), terms[first] + terms[second]
    x, o = right.get(asked.point, (np.zeros(0), np.ones(0)))
    if x.shape != o.shape or not np.isfinite(x).all():
        return
    for said in one_way(x, o):
        name, rounding = DIRECTED[said]
        made = {
            point: rounding(exact) for point, (y, exact) in right.items() if goes(y, exact, name, rounding)
        }
        names = listed(list(made))
        predicted = {block_point(asked.block or 0, name): array for name, array in made.items()}
        sentence = f"{names}: the sum is {said}" if len(made) == 1 else f"{names}: the sums are {said}"
        yield Guess("residual.one_way", sentence, predicted, 1, code=DROPS, exact=True)
