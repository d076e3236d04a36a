"""What a layer does that fails in a situation: the masks and tiles that people get wrong, each tried.

Of attention every wrong set of keys is laid over the oracle's scores; of the feed-forward the columns past a
tile are left out; of any layer the rows that are off are said, where they are the last ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.metrics import relative_error
from llama_ckpt.ladder.situations import Situation
from llama_ckpt.points import Case

__all__ = ["looks_like"]

Array = NDArray[np.float64]

EXPLAINS = 20.0
"""What a name leaves is at most so many times the limit."""

TILES = (256, 128, 64, 32, 16, 8)


def looks_like(
    situation: Situation,
    case: Case,
    rows: slice,
    x: Array,
    o: Array,
    limit: float,
    left: tuple[Array, Array] | None = None,
) -> tuple[str, float]:
    """A clause on what was done, "" where nothing known fits, and the error that it leaves.

    Args:
        case: with the rows that the cache holds, as the oracle takes it. rows: those of the call among them.
        x, o: what the layer returned for these, and what it should. limit: what was allowed.
        left: keys and values that were taken out of the cache, and still lie there.
    """
    if x.shape != o.shape or not np.isfinite(x).all():
        return "", 0.0
    said = [(relative_error(x, made), words) for words, made in _tried(situation, case, rows, left)]
    best = min(said, default=(np.inf, ""))
    if best[0] <= EXPLAINS * limit:
        return best[1], best[0]
    return _last_rows(x, o, limit), 0.0


def _tried(
    situation: Situation, case: Case, rows: slice, left: tuple[Array, Array] | None
) -> Iterator[tuple[str, Array]]:
    if case.function == "attention":
        yield from _masks(situation, case.arguments, rows)
        if left is not None:
            given = dict(case.arguments)
            given |= {name: np.concatenate([x, given[name]]) for name, x in zip("kv", left, strict=True)}
            at, n = np.asarray(given["positions"]), len(left[0])
            seen = at[None, : rows.stop] <= at[rows, None]
            seen = np.concatenate([np.ones((len(seen), n), bool), seen], axis=1)
            words = "tokens that were taken out of the cache are still seen"
            yield words, _attended(given, rows, n + rows.stop, seen, 0)
    if case.function == "swiglu":
        yield from _tiles(case.arguments, rows)


def _masks(situation: Situation, given: Mapping[str, Any], rows: slice) -> Iterator[tuple[str, Array]]:
    """Attention's output with other keys in sight."""
    at, ids = np.asarray(given["positions"]), given.get("sequence_ids")
    start, stop, _ = rows.indices(len(at))
    seen = at[None, :stop] <= at[start:stop, None]
    own = np.ones_like(seen) if ids is None else ids[None, :stop] == ids[start:stop, None]
    right, n = seen & own, stop - start
    itself = np.arange(stop)[None] == np.arange(start, stop)[:, None]
    this_call = np.broadcast_to(np.arange(stop) >= start, right.shape)
    others = np.arange(stop)[None] <= np.arange(start, stop)[:, None]
    masks = {
        "the mask is aligned to the top left: the first keys alone are seen": np.tri(n, stop, dtype=bool),
        "what the cache held before this call is forgotten": right & this_call,
        "a token does not see its own key: the cache is one key short": right & ~itself,
        "the first key is not seen": right & (np.arange(stop) > 0),
        "all keys are seen, later ones too": own,
        "sequences are not told apart": seen,
        "sequences are not told apart, and rows stand for positions": others,
        "the latest call's keys are not seen": right & ~this_call,
    }
    for words, mask in masks.items():
        if mask.any(1).all() and not np.array_equal(mask, right):
            yield words, _attended(given, rows, stop, mask, 0)
    if situation.calls:
        room = situation.sequences * situation.room
        yield "free slots of the cache count in the softmax", _attended(given, rows, stop, right, room - stop)


def _attended(
    given: Mapping[str, Any], rows: slice, stop: int, visible: NDArray[np.bool_], free: int
) -> Array:
    """Attention of a call's rows to the first `stop` keys, and to so many keys of zeros."""
    q = np.asarray(given["q"])[rows]
    k, v = (np.asarray(given[name])[:stop].repeat(q.shape[1] // given["k"].shape[1], 1) for name in "kv")
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(visible, scores, -np.inf)
    e = np.exp(scores)
    probs = e / (e.sum(-1, keepdims=True) + free)
    return np.asarray(np.einsum("hts,shd->thd", probs, v).reshape(len(q), -1) @ np.asarray(given["wo"]).T)


def _tiles(given: Mapping[str, Any], rows: slice) -> Iterator[tuple[str, Array]]:
    """The feed-forward without the features, or the inputs, past the last whole tile."""
    x, gate, up, down = (np.asarray(given[name]) for name in ("x", "w_gate", "w_up", "w_down"))
    for tile in TILES:
        n, m = len(gate) // tile * tile, x.shape[1] // tile * tile
        if 0 < n < len(gate):
            yield (
                f"features from {n} on are left out: the last tile of {tile}",
                _fed(x[rows], gate[:n], up[:n], down[:, :n]),
            )
        if 0 < m < x.shape[1]:
            words = f"inputs from {m} on are left out: the last tile of {tile}"
            yield words, _fed(x[rows, :m], gate[:, :m], up[:, :m], down)


def _fed(x: Array, gate: Array, up: Array, down: Array) -> Array:
    a = x @ gate.T
    return np.asarray((a / (1 + np.exp(-a)) * (x @ up.T)) @ down.T)


def _last_rows(x: Array, o: Array, limit: float) -> str:
    """Where the rows before one are right and those from it on are not."""
    flat = x.reshape(len(x), -1), o.reshape(len(o), -1)
    off = np.linalg.norm(flat[0] - flat[1], axis=1) > EXPLAINS * limit * (
        np.linalg.norm(flat[1], axis=1) + 1e-30
    )
    first = int(np.argmax(off))
    if not off.any() or not first or not off[first:].all():
        return ""
    return f"rows from {first} on are off, those before are right"
