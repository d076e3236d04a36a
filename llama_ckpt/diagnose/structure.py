"""What simple change of the oracle's tensor gives the tensor on trial, and what is left then.

The changes are tried from the simplest on: constant, sign, gain, bias, a shift of positions or layers,
axes or heads or features in another order, one bad token, head or feature, saturation, a gain for each
token or feature. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.diagnose.matching import distance, passes
from llama_ckpt.diagnose.records import Finding
from llama_ckpt.limits import Limit

__all__ = ["find_structure"]

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

MOST = 0.1
"""A change is reported when it leaves less than this share of the error."""


@dataclass(frozen=True)
class Change:
    """The oracle's tensor changed in some way."""

    kind: str
    sentence: str
    changed: Array


def find_structure(
    x: ArrayLike,
    o: ArrayLike,
    *,
    limit: Limit,
    mask: Mask | None = None,
    n_heads: int | None = None,
    neighbours: Mapping[str, ArrayLike] | None = None,
) -> list[Finding]:
    """The changes that give x from o, or most of it, the simplest that explains it first.

    Args:
        x, o: the tensor on trial and the oracle's, the token first.
        limit: what holds at this point; a change explains x when the rest would pass.
        mask: where it is judged, as in `compare.judge`.
        n_heads: into how many heads a flat last axis is divided; not needed for three axes.
        neighbours: the oracle's tensors of other layers or points, by name.
    """
    trial, oracle = np.asarray(x, np.float64), np.asarray(o, np.float64)
    err = distance(trial, oracle, mask)
    found: list[Finding] = []
    for change in changes(trial, oracle, mask):
        left = distance(trial, change.changed, mask)
        explained = passes(trial, change.changed, limit, mask)
        if explained or left < MOST * err:
            found.append(Finding(change.kind, change.sentence, left, explained))
    return sorted(found, key=lambda finding: not finding.explained)


def changes(x: Array, o: Array, mask: Mask | None) -> Iterator[Change]:
    """Every change that is tried, the simplest first."""
    yield Change("sign", "the sign is flipped", -o)
