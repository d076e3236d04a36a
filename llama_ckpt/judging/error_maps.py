"""Where in a tensor its error lies: tokens by heads or features, heads by features, queries by keys.

A cell is the error of a group of elements over what is allowed to the whole tensor, as if all of it were so
far off; at most 64 rows and 32 columns, for a page to draw. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.tally import row_errors

__all__ = ["error_maps", "wrong_rows"]

Array: TypeAlias = NDArray[np.float64]

MOST_ROWS, MOST_COLUMNS = 64, 32


def error_maps(x: ArrayLike, o: ArrayLike, allowed: float, axes: Sequence[str]) -> list[dict[str, Any]]:
    """The maps of a tensor: `rows` and `columns` (which axes), `step` (elements a column) and `ratios`.

    Args:
        x: the tensor; o: what it should be, of the same shape and finite, the token first.
        allowed: the relative error that is allowed; axes: what its axes count.
    """
    oracle = np.asarray(o, np.float64)
    size = np.linalg.norm(oracle) / math.sqrt(max(oracle.size, 1))
    if oracle.ndim not in (2, 3) or not size or not allowed > 0 or np.shape(x) != oracle.shape:
        return []
    with np.errstate(all="ignore"):
        squares = np.square((np.asarray(x, np.float64) - oracle) / (size * allowed))
    if oracle.ndim == 2:
        return [_map(squares, axes[0], axes[1])]
    by_head = _map(squares.mean(axis=2), axes[0], axes[1])
    other = squares.mean(axis=1) if axes[2] == "key" else squares.mean(axis=0)
    return [by_head, _map(other, axes[0] if axes[2] == "key" else axes[1], axes[2])]


def wrong_rows(x: Array, o: Array, mask: Any, limit: Limit, n_tokens: int) -> tuple[int, ...]:
    """Which tokens' rows are off by more than is allowed; the worst where each is not by itself.

    Args:
        x: the tensor, `[n, …]`; o: what it should be; mask: where it is judged; limit: what holds there.
        n_tokens: of the prompt; the last row's logits alone are a row.
    """
    errors = row_errors(x, o, mask)
    allowed = limit.row_err if limit.rows is None else limit.rows
    wrong = np.flatnonzero(~(errors <= np.broadcast_to(allowed, len(errors))))
    worst = [int(np.argmax(np.nan_to_num(errors, nan=np.inf)))]
    return tuple(int(row) + n_tokens - len(x) for row in (wrong.tolist() or worst))


def _map(squares: Array, rows: str, columns: str) -> dict[str, Any]:
    shown = squares[:MOST_ROWS]
    step = max(1, -(-shown.shape[1] // MOST_COLUMNS))
    starts = np.arange(0, shown.shape[1], step)
    counts = np.diff([*starts, shown.shape[1]])
    ratios = np.sqrt(np.add.reduceat(shown, starts, axis=1) / counts)
    return {"rows": rows, "columns": columns, "step": step, "ratios": ratios.tolist()}
