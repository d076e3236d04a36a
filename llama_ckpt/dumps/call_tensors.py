"""The tensors of a point call by call, with the token's axis first and the key's last; numpy only.

A call may have a tensor of its own, or some rows of one that all calls share; it may be of a batch,
`[batch, n, …]`; and a map may say that its axes lie in another order. Here they are put in one, and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.calls import RunTable
from llama_ckpt.dumps.names_map import Rule
from llama_ckpt.dumps.theirs import TheirDump
from llama_ckpt.points import ALL_POINTS, split_name

__all__ = ["Laid", "has_keys", "local", "piece_of"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Laid:
    """A tensor with tokens first, and keys last where it has such.

    Attributes:
        x: `[n, …]` or `[n, …, keys]`.
        token, key: where these axes lay, None where keys are none of its own; reverse: its shape was written
            fastest axis first.
    """

    x: Array
    token: int = 0
    key: int | None = None
    reverse: bool = False

    def back(self, x: Array) -> Array:
        """Another array in the order that this one lay in."""
        if self.key is not None:
            x = np.moveaxis(x, (0, -1), (self.token, self.key))
        elif self.token:
            x = np.moveaxis(x, 0, self.token)
        return x.reshape(x.shape[::-1]) if self.reverse else x


def has_keys(point: str) -> bool:
    """Whether a point, by its full name, has an axis of keys."""
    return "key" in ALL_POINTS[split_name(point)[1]].axes


def piece_of(theirs: TheirDump, point: str, table: RunTable, call: int) -> Laid | None:
    """A call's rows of a point; None where it has none, or another number of them."""
    rule, rows = theirs.stored[point][1], table.rows_of(call)
    names = dict(theirs.by_call.get(point, ()))
    if not names:
        laid = _laid(theirs.piece(theirs.stored[point][0]), rule, point, len(table.calls), theirs.batch)
        if laid is None or len(laid.x) != len(table.calls):
            return None
        return Laid(laid.x[list(rows)], laid.token, laid.key, laid.reverse)
    if call not in names:
        return None
    laid = _laid(theirs.piece(names[call]), rule, point, len(rows), theirs.batch)
    return laid if laid is not None and len(laid.x) == len(rows) else None


def _token_axis(x: Array, rule: Rule, point: str) -> int | None:
    """Where tokens are counted, as a map or the point's own axes say it."""
    named = _named(x, rule, point)
    return named.index(("token",)) if ("token",) in named else None


def _named(x: Array, rule: Rule, point: str) -> tuple[tuple[str, ...], ...]:
    axes = ALL_POINTS[split_name(point)[1]].axes
    return rule.axes or tuple((axis,) for axis in (*("1",) * (x.ndim > len(axes)), *axes))


def _laid(x: Array, rule: Rule, point: str, n: int, batch: int | None) -> Laid | None:
    reverse = "ne" in rule.layout
    x = x.reshape(x.shape[::-1]) if reverse else x
    if rule.axes is None and _is_of_a_batch(x, point, n, batch):
        x = x.reshape(-1, *x.shape[2:])
    token = _token_axis(x, rule, point)
    if token is None or token >= x.ndim:
        return None
    named = _named(x, rule, point)
    key = named.index(("key",)) if ("key",) in named and has_keys(point) else None
    if key is not None and key >= x.ndim:
        key = None
    if key is not None:
        return Laid(np.moveaxis(x, (token, key), (0, -1)), token, key, reverse)
    return Laid(np.moveaxis(x, token, 0), token, None, reverse)


def _is_of_a_batch(x: Array, point: str, n: int, batch: int | None) -> bool:
    """Whether the first two axes are a batch's and a token's."""
    if x.ndim < 2 or x.shape[0] * x.shape[1] != n:
        return False
    wide = x.ndim > len(ALL_POINTS[split_name(point)[1]].axes)
    return x.shape[0] == batch or (wide and x.shape[0] > 1)


def local(rows: Sequence[int], of_call: Sequence[int]) -> list[int]:
    """Where rows of the file stand among those of a call."""
    place = {row: i for i, row in enumerate(of_call)}
    return [place[row] for row in rows]
