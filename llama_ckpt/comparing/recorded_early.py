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

__all__ = ["without_weight"]

Array: TypeAlias = NDArray[Any]


def without_weight(
    x: Array,
    o: Array,
    weight: Array,
    theirs: Mapping[str, Array],
    readers: Mapping[str, Array],
    limit: Limit,
) -> Array | None:
    """`x * weight` where x is a norm recorded before its weight; None where it is anything else.

    Args:
        x: their norm `[n, width]`; `o` the oracle's.
        weight: of the norm, `[width]`.
        theirs: their other tensors by neutral name.
        readers: the matrices `[out, width]` that the norm is multiplied with, by the point they make.
        limit: what holds at the norm.
    """
    if x.shape != o.shape or not np.isfinite(x).all() or np.allclose(weight, 1.0, rtol=1e-3, atol=0.0):
        return None
    if judge("", x, o, limit=limit, dtype=limit.dtype).verdict == "pass":
        return None
    repaired = np.asarray(x, np.float64) * weight
    if judge("", repaired, o, limit=limit, dtype=limit.dtype).verdict == "fail":
        return None
    for point, matrix in readers.items():
        read = theirs.get(point)
        if read is None or not np.isfinite(read).all():
            continue
        flat = np.asarray(read, np.float64).reshape(len(read), -1)
        early, forgotten = repaired @ matrix.T, np.asarray(x, np.float64) @ matrix.T
        if flat.shape != early.shape:
            continue
        # Whatever is wrong with the reader itself, it is nearer to what it was computed from.
        if np.linalg.norm(flat - forgotten) < np.linalg.norm(flat - early):
            return None
    return repaired
