"""Whether a cache that was recorded holds what its rows were given: `blk.3.k_cache`, `call.2.blk.3.v_cache`.

A slot is `[kv_heads, head_dim]`, and the cache `[slots, kv_heads, head_dim]` as it is when its call has
been computed. Slots hold `k_rope` and `v` of the rows that lie there: their own, so that no oracle is asked.
A cache in half precision holds them rounded. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llama_ckpt.comparing.comparison import LintFinding
from llama_ckpt.dumps.key_columns import NOTHING, columns_of
from llama_ckpt.dumps.sequences import SequenceDump
from llama_ckpt.dumps.theirs import CACHE
from llama_ckpt.judging.metrics import relative_error
from llama_ckpt.points import block_point

__all__ = ["wrong_slots"]

HELD = {"k": "k_rope", "v": "v"}
ROUNDED = 1e-2
"""Relative error of a slot below which a cache in any half precision holds the right row."""


def wrong_slots(parts: Sequence[SequenceDump]) -> Iterator[LintFinding]:
    """The first slot of each cache that holds something else than its row."""
    first = parts[0]
    for name in sorted(str(key) for key in first.file.keys()):  # noqa: SIM118 (an open file, no mapping)
        match = CACHE.fullmatch(name)
        if match is None:
            continue
        call = int(match["call"]) if match["call"] else first.table.numbers[-1]
        point = block_point(int(match["block"]), HELD[match["which"]])
        if point in first.stored and call in first.table.numbers:
            yield from _of_cache(parts, name, point, call)


def _of_cache(parts: Sequence[SequenceDump], name: str, point: str, call: int) -> Iterator[LintFinding]:
    first, slots = parts[0], parts[0].piece(name)
    columns = columns_of(first.table, call, first.number, len(slots))
    gone = {row for rows in first.table.cached[call].gone.values() for row in rows}
    for slot, row in enumerate(columns):
        if row == NOTHING or row in gone or first.table.padding[row]:
            continue
        piece = first.piece_in(point, first.table.calls[row])
        if piece is None:
            continue
        own = piece.x[first.table.rows_of(first.table.calls[row]).index(row)]
        if own.size != slots[slot].size:
            return
        error = relative_error(slots[slot].reshape(-1), np.asarray(own, np.float64).reshape(-1))
        if not error <= ROUNDED:
            message = (
                f"{name}: slot {slot} holds not what row {row} has in {point}: relative error {error:.1e}"
            )
            message += f" after call {call}"
            yield LintFinding("cache", name, message, "look at where the new keys and values are written")
            return
