"""Rows of the embedding that are another token's, and what was done to them.

Logits are a product like others; that its rows are moved, or those of the embedding's table, is found there.
numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.affine import factor_said
from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.judging.matching import ROUNDED
from llama_ckpt.oracle import llama as oracle

__all__ = ["logits_guesses"]

Array: TypeAlias = NDArray[Any]

MOST = 1 << 26
"""Elements of a table that is looked through for rows."""

FEW = 8
"""So many rows are named one by one."""


def logits_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where embd is the first wrong tensor."""
    if asked.first.case.function != "embed" or "weight" not in asked.given:
        return
    x, o = asked.x, asked.o
    table, ids = np.asarray(asked.given["weight"]), np.asarray(asked.given["token_ids"])
    if x.shape != o.shape or x.ndim != 2 or not np.isfinite(x).all():
        return
    yield from _changed(asked, x, o)
    yield from _other_tables(asked, table, ids, x)
    if table.size <= MOST:
        yield from _looked_up(asked, table, ids, x)


def _guess(asked: Asked, kind: str, sentence: str, p: Array, numbers: int, **parameters: Any) -> Guess:
    made = {asked.name: p}
    code = "the lookup of the embedding"
    return Guess(f"embedding.{kind}", sentence, made, numbers, parameters=parameters, code=code, part=False)


def _changed(asked: Asked, x: Array, o: Array) -> Iterator[Guess]:
    """A factor, or a norm."""
    gain = float(np.vdot(x, o)) / (float(np.vdot(o, o)) or 1.0)
    said = f"the embedding is multiplied by {factor_said(gain)}"
    if abs(gain**2 - o.shape[1]) < 1e-4 * o.shape[1]:
        said += f", the root of the width {o.shape[1]}"
    yield _guess(asked, "factor", said, gain * o, 1, factor=gain)
    config, weights = asked.around.config, asked.around.weights
    eps = getattr(config, "rms_norm_eps", None)
    if eps is not None:
        normed = oracle.rms_norm(o, np.ones(o.shape[1]), eps=eps)
        yield _guess(asked, "normed", "a norm without a weight is applied to the embedding", normed, 1)
        if weights is not None:
            first = oracle.rms_norm(o, weights.blocks[0].attn_norm, eps=eps)
            yield _guess(asked, "normed", "it is the first block's norm, not the embedding", first, 1)


def _other_tables(asked: Asked, table: Array, ids: Array, x: Array) -> Iterator[Guess]:
    """The head's matrix, the table read as its transpose, token ids moved."""
    head = getattr(asked.around.weights, "output", None)
    if head is not None and head is not asked.given["weight"] and np.shape(head) == table.shape:
        yield _guess(
            asked,
            "table",
            "the embedding is taken from the head's table where the file has its own",
            head[ids],
            1,
        )
    turned = table.reshape(table.shape[::-1]).T
    said = "the table is read in its transpose's order, as [width, vocabulary]"
    yield _guess(asked, "transposed", said, turned[ids], 0)
    for by in (1, -1, 2, -2, 3, -3):
        if ((ids + by >= 0) & (ids + by < len(table))).all():
            said = f"each token has the row of token {by:+d}"
            yield _guess(asked, "moved", said, table[ids + by], 1, by=by)
    for by in (1, -1):
        said = f"each row is that of the {'token before' if by == 1 else 'next token'}, round the end"
        yield _guess(asked, "rows", said, table[np.roll(ids, by)], 1, rows=by)


def _looked_up(asked: Asked, table: Array, ids: Array, x: Array) -> Iterator[Guess]:
    """Each row by itself: which token's it is, or zeros."""
    squares = np.einsum("vw,vw->v", table, table)
    distance = squares[None, :] - 2 * (x @ table.T) + np.sum(x * x, axis=1)[:, None]
    found = distance.argmin(axis=1)
    zero = np.linalg.norm(x, axis=1) == 0
    exact = np.linalg.norm(x - table[found], axis=1) <= 10 * ROUNDED * np.linalg.norm(x, axis=1)
    if not (exact | zero).all():
        return
    # Of equal rows the token's own counts.
    same = np.array([np.array_equal(table[a], table[b]) for a, b in zip(found, ids, strict=True)])
    found = np.where(same, ids, found)
    moved = np.flatnonzero((found != ids) | zero)
    if not len(moved):
        return
    p = np.where(zero[:, None], 0.0, table[found])
    tokens = [None if zero[i] else int(found[i]) for i in range(len(ids))]
    yield _guess(asked, "tokens", _said(moved, ids, tokens), p, len(moved), tokens=tokens)


def _said(moved: Array, ids: Array, tokens: Sequence[int | None]) -> str:
    named = ", ".join(
        f"row {i} is " + ("zeros" if tokens[i] is None else f"that of token {tokens[i]}") + f", not {ids[i]}"
        for i in moved[:FEW]
    )
    more = f", and {len(moved) - FEW} rows more" if len(moved) > FEW else ""
    return f"the embedding's {named}{more}"
