"""Which guess of `cached_keys` gives the contexts that a program recorded. numpy only.

Scores need no order of features, as long as q and k have the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.cached_keys import ZERO, CallKeys, Guessed, guesses
from llama_ckpt.comparing.cached_tensors import kept_otherwise
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
    apart: float | None = None
    """Where not None, the first keys have a softmax of their own, and so much of each part is added up."""
    n_before: int = 0

    def gives(self, row: int, keys: Sequence[int], values: Sequence[int]) -> Array:
        """A row's context `[heads * head_dim]` from these keys and values."""
        k, v = self._taken(self.k, keys), self._taken(self.v, values)
        heads, d = self.q.shape[1], self.q.shape[2]
        group = heads // k.shape[1]
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scaled = np.einsum("hd,mhd->hm", self.q[row], k) / np.sqrt(d)
        if self.apart is not None:
            halves = np.split(scaled, [self.n_before], axis=1)
            probs = np.concatenate([_softmax(half) for half in halves], axis=1) * self.apart
        else:
            probs = _softmax(scaled)
        return np.asarray(np.einsum("hm,mhd->hd", probs, v)).reshape(-1)

    @staticmethod
    def _taken(x: Array, rows: Sequence[int]) -> Array:
        made = np.zeros((len(rows), *x.shape[1:]))
        there = [i for i, row in enumerate(rows) if row != ZERO]
        made[there] = x[[rows[i] for i in there]]
        return made


def _softmax(scaled: Array) -> Array:
    e = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


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
        found = _nearest(recorded, at, block)
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


def _nearest(recorded: _Recorded, at: CallKeys, block: int) -> Guessed | None:
    most = _errors(recorded, at, _right(at))
    best = min(SAME, NEARER * most)
    found: Guessed | None = None
    for guess, error in _tried(recorded, at, block):
        if error < best and (found is None or error < 0.1 * best):
            best, found = error, guess
    return found


def _tried(recorded: _Recorded, at: CallKeys, block: int) -> Iterator[tuple[Guessed, float]]:
    """Every guess with the error that it leaves."""
    for guess in islice(guesses(at), MOST_GUESSES):
        yield guess, _errors(recorded, at, guess.seen)

    def read(other: int, point: str) -> Array | None:
        x = _of_rows(at.part, block_point(other, point))
        return None if x is None or x.shape != recorded.k.shape else x

    right = _right(at)
    for kept in kept_otherwise(recorded.k, recorded.v, at.before, at.own, block, read):
        other = replace(recorded, k=kept.k, v=kept.v)
        yield Guessed(kept.words, kept.hint, right), _errors(other, at, right)
    if at.before:
        words = "the softmaxes over the cache's keys and over the call's own are {}"
        hint = "weigh each part's sum by its keys' exponents, as one softmax does"
        for factor, how in ((0.5, "averaged"), (1.0, "added up")):
            apart = replace(recorded, apart=factor, n_before=len(at.before))
            yield Guessed(words.format(how), hint, right), _errors(apart, at, right)


def _recorded(parts: Sequence[SequenceDump], block: int) -> _Recorded | None:
    """A block's attention by the file's rows; None where a point is missing or of another shape."""
    found = [_of_rows(parts[0], block_point(block, point)) for point in ATTENDED]
    made = [x for x in found if x is not None]
    if len(made) < len(ATTENDED):
        return None
    q, k, v, context = made
    if any(one.ndim != 3 for one in (q, k, v)) or context.size != q.size or q.shape[1] % k.shape[1]:
        return None
    return None if k.shape != v.shape else _Recorded(q, k, v, context.reshape(len(context), -1))


def _of_rows(part: SequenceDump, name: str) -> Array | None:
    """A point by the file's rows, NaN where nothing was recorded; None where calls have other shapes."""
    x: Array | None = None
    for call in part.table.numbers if name in part.stored else ():
        piece = part.piece_in(name, call)
        if piece is None:
            continue
        if x is None:
            x = np.full((len(part.table.calls), *piece.x.shape[1:]), np.nan)
        if piece.x.shape[1:] != x.shape[1:]:
            return None
        x[list(part.table.rows_of(call))] = piece.x
    return x
