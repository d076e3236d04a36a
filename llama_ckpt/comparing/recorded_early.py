"""Telling a norm that was recorded too early from one whose weight is forgotten.

Both give the same tensor; what was computed from it tells them apart. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.verdict import judge

__all__ = ["was_read_without", "with_weight"]

Array: TypeAlias = NDArray[Any]


def with_weight(x: Array, o: Array, weight: Array, limit: Limit) -> Array | None:
    """`x * weight` where that is right and x is not; None where it is anything else.

    Args:
        x: their norm `[n, width]`; `o` the oracle's.
        weight: of the norm, `[width]`.
        limit: what holds at the norm.
    """
    if x.shape != o.shape or not np.isfinite(x).all() or np.allclose(weight, 1.0, rtol=1e-3, atol=0.0):
        return None
    if judge("", x, o, limit=limit, dtype=limit.dtype).verdict == "pass":
        return None
    repaired = np.asarray(x, np.float64) * weight
    if judge("", repaired, o, limit=limit, dtype=limit.dtype).verdict == "fail":
        return None
    return repaired


def was_read_without(
    theirs: Mapping[str, Array], without: Mapping[str, Array], repaired: Mapping[str, Array], norm: str
) -> bool:
    """Whether what they recorded after a norm was computed from it as it stands, without its weight.

    Args:
        theirs: their tensors by neutral name.
        without: the points on the norm as it stands; repaired: on the norm with its weight.
        norm: its neutral name.
    """
    for point, x in theirs.items():
        if point == norm or point not in without or not np.isfinite(x).all():
            continue
        forgotten, early = without[point], repaired[point]
        if forgotten.shape != x.shape or forgotten is early or np.array_equal(forgotten, early):
            continue  # not computed from it
        # Whatever is wrong with the reader itself, it is nearer to what it was computed from.
        if np.linalg.norm(x - forgotten) < np.linalg.norm(x - early):
            return True
    return False
