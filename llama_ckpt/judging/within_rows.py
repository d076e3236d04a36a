"""What rounding allows scores and probabilities of a long prompt, as `limits.within` has it. numpy only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.by_rows import parts
from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.metrics import floored_norms
from llama_ckpt.judging.rows_allowed import Allowed
from llama_ckpt.judging.rows_seen import Rows
from llama_ckpt.judging.sums import inner

__all__ = ["within_rows"]

Array: TypeAlias = NDArray[Any]


def within_rows(table: Limit, made: Iterable[Rows], o: Array) -> Limit:
    """As `limits.within`, of scores or probabilities `o [n, heads, keys]`, a few rows at a time.

    Args:
        table: the table's limit; made: all rows with their spreads, in order; of the keys those at the end
            that they leave out are allowed nothing.
    """
    allowed, fourth = Allowed(table), 0.0
    elements = np.zeros(o.shape, np.float32)  # two digits count, and these are large
    norms, counts = np.empty(len(o)), np.empty(len(o))
    start = 0
    for rows in made:
        exact, n = np.asarray(rows.o, np.float64), len(rows.o)
        here = slice(start, start + n)
        counts[here] = rows.width or exact.shape[1]
        if rows.judged is not None:
            exact, counts[here] = np.where(rows.judged, exact, 0.0), np.count_nonzero(rows.judged, axis=1)
        square = np.square(exact)
        norms[here], fourth = np.sqrt(square.sum(axis=1)), fourth + inner(square, square)
        assert rows.spread is not None
        most = allowed.add(exact, rows.spread, rows.judged, norms[here], rows.some)
        keys = exact.shape[1] // o.shape[1]
        elements[here, :, :keys] = most.reshape(n, -1, keys)
        start = here.stop
    scale = floored_norms(norms)
    rms = scale / np.sqrt(np.maximum(counts, 1))
    for part in parts(o.shape):
        elements[part] /= np.abs(o[part]) + rms[part, None, None]
    norm, largest = math.sqrt(float(norms @ norms)) or 1.0, float(elements.max())
    n_gain = norm**4 / (fourth or 1.0)
    limit = allowed.limit(norm, n_gain, int(counts.sum()), o.size, largest, scale)
    return replace(limit, elements=elements.reshape(len(o), -1))
