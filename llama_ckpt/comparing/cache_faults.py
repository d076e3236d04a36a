"""Which guess of `cached_keys` gives the contexts that a program recorded. numpy only.

Scores need no order of features, as long as q and k have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.cached_keys import ZERO, CallKeys, Guessed, guesses
from llama_ckpt.comparing.comparison import LintFinding
from llama_ckpt.dumps.sequences import SequenceDump
from llama_ckpt.judging.metrics import relative_error
from llama_ckpt.points import block_point, split_name

__all__ = ["cache_fault"]

Array = NDArray[Any]

ATTENDED = ("q_rope", "k_rope", "v", "attn_context")
"""What attention reads, and what it gives."""

SAME = 0.01
"""Relative error below which a context is taken for that of other keys: any precision is nearer than that."""

NEARER = 0.1
"""A guess leaves so much at most of what the right keys leave."""

MOST_SCORES = 1 << 22
"""Of a call with more, nothing is guessed."""

MOST_GUESSES = 60


@dataclass(frozen=True)
class _Recorded:
    """One block's attention, every row of the file; NaN where nothing was recorded."""

    q: Array
    k: Array
    v: Array
    context: Array

    def gives(self, row: int, keys: Sequence[int], values: Sequence[int]) -> Array:
        """A row's context `[heads * head_dim]` from these keys and values."""
        k, v = self._taken(self.k, keys), self._taken(self.v, values)
        heads, d = self.q.shape[1], self.q.shape[2]
        group = heads // k.shape[1]
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scaled = np.einsum("hd,mhd->hm", self.q[row], k) / np.sqrt(d)
        e = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        return np.asarray(np.einsum("hm,mhd->hd", e / e.sum(axis=-1, keepdims=True), v)).reshape(-1)

    @staticmethod
    def _taken(x: Array, rows: Sequence[int]) -> Array:
        made = np.zeros((len(rows), *x.shape[1:]))
        there = [i for i, row in enumerate(rows) if row != ZERO]
        made[there] = x[[rows[i] for i in there]]
        return made


def cache_fault(parts: Sequence[SequenceDump], part: SequenceDump, wrong: str) -> LintFinding | None:
    """What of the cache, or of the batch, gives what a sequence recorded; None where nothing known does.

    Args:
        parts: all sequences of the dump. part: the wrong one. wrong: its first wrong point.
    """
    block = split_name(wrong)[0]
    recorded = None if block is None else _recorded(parts, block)
    if recorded is None or block is None:
        return None
    for call in part.calls:
        at = CallKeys(part, call, _n_keys(part, block, call))
        n = len(_some(len(at.own))) * len(part.table.calls) * recorded.q.shape[1]
        if n > MOST_SCORES or not _is_wrong(recorded, at):
            continue
        found = _nearest(recorded, at)
        if found is None:
            return None
        name = block_point(block, "attn_context")
        several = len(at.own) > 1
        rows, its = ("rows do", "their") if several else ("the row does", "its")
        words = f"{name}: {found.words.format(rows=rows, its=its)}"
        return LintFinding("sees_others" if found.of_others else "cache", name, words, found.hint)
    return None


def _n_keys(part: SequenceDump, block: int, call: int) -> int | None:
    for point in ("attn_probs", "attn_scores"):
        name = block_point(block, point)
        piece = part.piece_in(name, call) if name in part.stored else None
        if piece is not None:
            return int(piece.x.shape[-1])
    return None


def _errors(recorded: _Recorded, at: CallKeys, seen: Any) -> float:
    made: list[Array] = []
    theirs: list[Array] = []
    for place in _some(len(at.own)):
        row = at.own[place]
        keys, values = seen(place)
        if not keys or len(keys) != len(values):
            return np.inf
        made.append(recorded.gives(row, keys, values))
        theirs.append(recorded.context[row])
    with np.errstate(all="ignore"):
        error = relative_error(np.asarray(theirs), np.asarray(made))
    return error if np.isfinite(error) else np.inf


def _some(n: int) -> list[int]:
    """So many rows that a mask shows, of a long call: its first, its last, and some between."""
    return sorted({*range(min(n, 6)), *range(max(0, n - 6), n), *range(0, n, max(1, n // 12))})


def _right(at: CallKeys) -> Any:
    return lambda place: (at.right(place), at.right(place))


def _is_wrong(recorded: _Recorded, at: CallKeys) -> bool:
    return _errors(recorded, at, _right(at)) > SAME


def _nearest(recorded: _Recorded, at: CallKeys) -> Guessed | None:
    most = _errors(recorded, at, _right(at))
    best = min(SAME, NEARER * most)
    found: Guessed | None = None
    for number, guess in enumerate(guesses(at)):
        if number >= MOST_GUESSES:
            break
        error = _errors(recorded, at, guess.seen)
        if error < best and (found is None or error < 0.1 * best):
            best, found = error, guess
    return found


def _recorded(parts: Sequence[SequenceDump], block: int) -> _Recorded | None:
    """A block's attention by the file's rows; None where a point is missing or of another shape."""
    part = parts[0]
    table = part.table
    made: list[Array] = []
    for point in ATTENDED:
        name = block_point(block, point)
        if name not in part.stored:
            return None
        x: Array | None = None
        for call in table.numbers:
            piece = part.piece_in(name, call)
            if piece is None:
                continue
            if x is None:
                x = np.full((len(table.calls), *piece.x.shape[1:]), np.nan)
            if piece.x.shape[1:] != x.shape[1:]:
                return None
            x[list(table.rows_of(call))] = piece.x
        if x is None:
            return None
        made.append(x)
    q, k, v, context = made
    if any(one.ndim != 3 for one in (q, k, v)) or context.size != q.size or q.shape[1] % k.shape[1]:
        return None
    return None if k.shape != v.shape else _Recorded(q, k, v, context.reshape(len(context), -1))
