"""The rows of a large point, as they are judged: theirs, what they should be, and what rounding may leave.

Scores and probabilities are made for a few queries at a time, logits for a few tokens; other points are in
memory as they are. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.attention import Attention, Part
from llama_ckpt.comparing.block_run import MATRICES, BlockRun
from llama_ckpt.comparing.block_spreads import OwnBlock
from llama_ckpt.comparing.head_run import HeadRun
from llama_ckpt.comparing.own_run import OwnRun
from llama_ckpt.judging.by_rows import parts
from llama_ckpt.judging.directions import column_step
from llama_ckpt.judging.rows_seen import Rows
from llama_ckpt.judging.spread import Spread

__all__ = ["LARGE", "rows_of"]

Array: TypeAlias = NDArray[Any]

LARGE = 1 << 13
"""From so many elements on a point is judged by rows."""


def rows_of(
    point: str, x: Array, run: Mapping[str, Array], r: Array | None, *, spread: bool, mask: Any = None
) -> Iterator[Rows]:
    """All rows of a point, a few at a time.

    Args:
        point: its neutral name; x: theirs; r: llama.cpp's, or None.
        run: where it is computed.
        spread: with what rounding may leave there.
        mask: `[queries, 1, keys]`, where it is judged; None for everywhere.
    """
    if point in MATRICES and isinstance(run, BlockRun) and run.in_parts:
        yield from _attended(point, x, run, r, spread, mask is not None)
    elif point == "logits" and isinstance(run, HeadRun):
        for part in parts(x.shape):
            o, off = run.logits_spread(part) if spread else (run.logits(part), None)
            yield Rows(x[part], o, None if r is None else r[part], off)
    else:
        yield from _in_memory(point, x, run, r, spread, mask)


def _attended(
    point: str, x: Array, run: BlockRun, r: Array | None, spread: bool, masked: bool
) -> Iterator[Rows]:
    attention = run.attention
    if spread and isinstance(run, OwnBlock):
        attention = run.spreads.attention
    assert attention is not None
    n, heads, _ = attention.shape
    for part in attention.parts():
        # What no query sees is 0 for the oracle, and left out where it is theirs too.
        if point == "attn_probs" and x[part.queries, :, part.keys :].any():
            part = Part(part.queries, n)
        o, off = _made(point, attention, part, spread)
        judged = np.broadcast_to(attention.visible(part)[:, None], o.shape) if masked else None
        yield Rows(
            _flat(x[part.queries, :, : part.keys]),
            _flat(o),
            None if r is None else _flat(r[part.queries, :, : part.keys]),
            None if off is None else replace(off, deviation=_flat(off.deviation)),
            None if judged is None else _flat(judged),
            heads * n,
            _compared(o, n) if spread else None,
        )


def _made(point: str, attention: Attention, part: Part, spread: bool) -> tuple[Array, Spread | None]:
    """The oracle's rows of a point and what rounding may leave there, `[queries, heads, keys]`."""
    if spread:
        return attention.scores_spread(part) if point == "attn_scores" else attention.probs_spread(part)
    made = attention.scores_of(part) if point == "attn_scores" else attention.probs_of(part)
    return made.transpose(1, 0, 2), None


def _compared(o: Array, n: int) -> Array:
    """Of scores or probabilities `[queries, heads, keys]` the columns that rows are compared by.

    They are the same in every part: those that this one leaves out are 0.
    """
    heads, keys = o.shape[1:]
    chosen = np.arange(0, heads * n, column_step(heads * n))
    head, key = chosen // n, chosen % n
    there = key < keys
    some = np.zeros((len(o), len(chosen)))
    some[:, there] = o[:, head[there], key[there]]
    return some


def _in_memory(
    point: str, x: Array, run: Mapping[str, Array], r: Array | None, spread: bool, mask: Any
) -> Iterator[Rows]:
    o = run[point]
    found: Spread | None = run.spreads.get(point) if spread and isinstance(run, OwnRun) else None
    for part in parts(o.shape):
        off = None if found is None else found.rows(part)
        yield Rows(
            _flat(x[part]),
            _flat(o[part]),
            None if r is None else _flat(r[part]),
            None if off is None else _flat_spread(off, o[part].shape),
            None if mask is None else _flat(np.broadcast_to(mask, o.shape)[part]),
        )


def _flat_spread(spread: Spread, shape: tuple[int, ...]) -> Spread:
    def flat(array: Array) -> Array:
        return _flat(np.broadcast_to(array, shape))

    most = None if spread.most is None else flat(spread.most)
    mode = None if spread.mode is None else flat(spread.mode)
    return replace(spread, deviation=flat(spread.deviation), most=most, mode=mode)


def _flat(rows: Array) -> Array:
    return rows.reshape(len(rows), -1)
