"""Which key and value head each query head read, which keys stand where, and over what a score was summed.

numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.attending import Attending
from llama_ckpt.identify.places import Place, ranges
from llama_ckpt.listing import listed, which

__all__ = ["features_summed", "heads_said", "keys_moved", "matched_heads", "place_of_heads"]

Array: TypeAlias = NDArray[Any]

ROWS = 24
"""So many of the last rows, which see most, are looked at."""


def matched_heads(wanted: Array, made: Array, judged: Any) -> NDArray[np.int64]:
    """For each head of `wanted [heads, …]` the one of `made [heads, choices, …]` that is nearest."""
    off = np.where(judged, wanted[:, None] - made, 0.0)
    return np.asarray(np.argmin(np.sum(off * off, axis=tuple(range(2, off.ndim))), axis=1))


def heads_said(reads: NDArray[np.int64], one: Attending, what: str) -> str:
    """ "query heads 2 and 3 read key heads 0 and 1 instead of 1"."""
    heads, own = len(reads), one.reads
    kv_heads = len(one.k)
    if (reads == np.arange(heads) % kv_heads).all():
        return f"query head h reads {what} head h % {kv_heads} instead of h // {heads // kv_heads}"
    if (reads == reads[0]).all():
        return f"every query head reads {what} head {reads[0]}"
    wrong = np.flatnonzero(reads != own)
    pairs = listed([f"{head} reads {what} head {reads[head]} instead of {own[head]}" for head in wrong[:8]])
    more = f" and {len(wrong) - 8} more heads read others" if len(wrong) > 8 else ""
    return f"query head {pairs}{more}"


def place_of_heads(reads: NDArray[np.int64], one: Attending) -> Place:
    """The query heads that read another head."""
    wrong = np.flatnonzero(reads != one.reads)
    return Place(heads=ranges(wrong), sizes={"heads": len(reads)}, nouns={"heads": "head"})


def keys_moved(one: Attending, scores: Array) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Keys that stand in the place of others: for each place the key that its scores are of; -1 is none."""
    n = one.n
    rows = np.arange(max(0, n - ROWS), n)
    seen = one.visible[rows]
    theirs = np.where(seen, scores[:, rows], 0.0)
    right = one.scores[:, rows]
    # |a - b|^2 over heads and the rows that see the place.
    cross = np.einsum("hrj,hri->ji", theirs, right)
    size = np.einsum("hrj,rj->j", theirs**2, seen.astype(float))
    other = np.einsum("rj,hri->ji", seen.astype(float), right**2)
    off = size[:, None] - 2 * cross + other
    off = np.maximum(off, 0)
    chosen = np.argmin(np.c_[size[:, None], off], axis=1) - 1
    own = np.arange(n)
    same = off[own, own] <= np.minimum(off.min(axis=1), size) + 1e-9 * size
    chosen = np.where(same, own, chosen)
    wrong = np.flatnonzero(chosen != own)
    if 0 < len(wrong):
        zero = [int(j) for j in wrong if chosen[j] < 0]
        moved = [int(j) for j in wrong if chosen[j] >= 0]
        parts = []
        if moved:
            shift = {int(chosen[j]) - j for j in moved}
            copied = len(moved) == 1 and chosen[chosen[moved[0]]] == chosen[moved[0]]
            if len(shift) == 1 and not copied:
                by = shift.pop()
                way = f"{abs(by)} place{'s' * (abs(by) > 1)} {'later' if by < 0 else 'earlier'}"
                names = which("key", [chosen[j] for j in moved], n)
                should = "stands {} than it should" if len(moved) == 1 else "stand {} than they should"
                parts.append(f"{names} {should.format(way)}")
            else:
                pairs = [f"{j} is that of token {chosen[j]}" for j in moved[:8]]
                more = f" and {len(moved) - 8} more are others" if len(moved) > 8 else ""
                parts.append(f"key {listed(pairs)}{more}")
        if zero:
            parts.append(f"{which('key', zero, n)} {'is' if len(zero) == 1 else 'are'} zero")
        yield "in the cache, " + ", and ".join(parts), chosen


def features_summed(one: Attending, scores: Array) -> Iterator[tuple[str, Array, int]]:
    """The coefficient of each of a head's features in the sum of a score, by least squares."""
    d, n = one.q.shape[-1], one.n
    rows = np.arange(max(0, n - ROWS), n)
    q, k = one.q[:, rows], one.k[one.reads]
    seen = one.visible[rows].astype(float)
    # Normal equations of sum over heads, rows and keys: products of queries times products of keys.
    left = np.zeros((d, d))
    right = np.zeros(d)
    for h in range(one.heads):
        for i in range(len(rows)):
            terms = (q[h, i] * k[h])[seen[i] > 0]
            left += terms.T @ terms
            right += terms.T @ scores[h, rows[i]][seen[i] > 0]
    if np.linalg.matrix_rank(left) < d:
        return
    found = np.linalg.solve(left, right)
    snapped = np.where(np.abs(found - np.round(found)) < 1e-3, np.round(found), found)
    wrong = np.flatnonzero(snapped != 1)
    if not 0 < len(wrong) < d:
        return
    names = which("feature", wrong, d)
    values = {float(value) for value in snapped[wrong]}
    said = {0.0: "are left out of each head's score", 2.0: "count twice in each head's score"}
    what = said.get(values.pop(), "") if len(values) == 1 else ""
    words = f"{names} {what}" if what else f"{names} have other coefficients in each head's score"
    yield f"in the product of queries and keys, {words}", snapped, len(ranges(wrong)) + 1
