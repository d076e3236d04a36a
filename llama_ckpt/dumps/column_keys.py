"""Which row's key each column is, of a dump's calls, by the queries, keys and scores in it. numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.call_tensors import local, piece_of
from llama_ckpt.dumps.calls import RunTable
from llama_ckpt.dumps.key_columns import Shown, columns_of
from llama_ckpt.dumps.theirs import TheirDump
from llama_ckpt.points import block_point

__all__ = ["KeyColumns"]

MOST_PRODUCTS = 1 << 22
"""Of more scores in a call, no products are made: the number of keys decides."""


@dataclass
class KeyColumns:
    """The columns of every call of a dump, found once."""

    theirs: TheirDump
    table: RunTable
    _found: dict[tuple[int, int, int, int], tuple[int, ...]] = field(default_factory=dict)

    def of(self, block: int, call: int, sequence: int, n_keys: int) -> tuple[int, ...]:
        """For each column the row of the file; see `columns_of`."""
        key = block, call, sequence, n_keys
        if key not in self._found:
            name = block_point(block, "attn_probs")
            apart = bool(self.theirs.by_call.get(name) or self.theirs.by_call.get(block_point(block, "q")))
            shown = None if self._is_plain(n_keys) else self._shown(*key)
            self._found[key] = columns_of(
                self.table, call, sequence, n_keys, shown, stacked=not apart and not self.theirs.by_call
            )
        return self._found[key]

    def _is_plain(self, n_keys: int) -> bool:
        """One call with a column for each row of the file."""
        return len(self.table.numbers) == 1 and n_keys == len(self.table.calls)

    def _shown(self, block: int, call: int, sequence: int, n_keys: int) -> Shown:
        of_call = self.table.rows_of(call)
        own = [
            row for row in of_call if self.table.sequences[row] == sequence and not self.table.padding[row]
        ]

        def of(point: str) -> NDArray[Any] | None:
            name = block_point(block, point)
            piece = piece_of(self.theirs, name, self.table, call) if name in self.theirs.stored else None
            if piece is None or piece.x.ndim < 3:
                return None
            return piece.x[local(own, of_call)].reshape(len(own), -1, piece.x.shape[-1])

        probs, scores, q = of("attn_probs"), of("attn_scores"), of("q_rope")
        wide = [x for x in (probs, scores) if x is not None and x.shape[-1] == n_keys]
        probs = probs if any(x is probs for x in wide) else None
        scores = scores if any(x is scores for x in wide) else None
        return Shown(probs, scores, self._products(block, q) if scores is not None else None)

    def _products(self, block: int, q: NDArray[Any] | None) -> NDArray[Any] | None:
        """Of queries with every row's key, `[rows, heads, n]`."""
        keys = self._keys(block)
        if q is None or keys is None or keys.shape[-1] != q.shape[-1] or q.shape[1] % keys.shape[1]:
            return None
        if q.shape[0] * q.shape[1] * len(keys) > MOST_PRODUCTS:
            return None
        group = q.shape[1] // keys.shape[1]
        with np.errstate(all="ignore"):
            return np.asarray(np.einsum("nhd,mhd->nhm", q.astype(np.float64), np.repeat(keys, group, axis=1)))

    def _keys(self, block: int) -> NDArray[np.float64] | None:
        name = block_point(block, "k_rope")
        made: NDArray[np.float64] | None = None
        if name not in self.theirs.stored:
            return None
        for call in self.table.numbers:
            piece = piece_of(self.theirs, name, self.table, call)
            if piece is None or piece.x.ndim != 3:
                continue
            if made is None:
                made = np.full((len(self.table.calls), *piece.x.shape[1:]), np.nan)
            if piece.x.shape[1:] == made.shape[1:]:
                made[list(self.table.rows_of(call))] = piece.x
        return made
