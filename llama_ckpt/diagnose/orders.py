"""Tokens, heads, features or axes in another order: found by looking for each one's nearest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.records import Change
from llama_ckpt.listing import some

__all__ = ["in_other_order", "other_axes"]

Array: TypeAlias = NDArray[np.float64]
Order: TypeAlias = NDArray[np.int64]

MOST_COMPARED = 4096
"""Axes longer than this are not searched: every one is compared with every other."""


def other_axes(x: Array, o: Array) -> Iterator[Change]:
    """The same numbers in another shape: read as it is, or with the axes in another order."""
    if x.size != o.size:
        return
    for order in itertools.permutations(range(o.ndim)):
        changed = np.ascontiguousarray(o.transpose(order))
        if changed.shape == x.shape:
            axes = ", ".join(map(str, order))
            yield Change("axes", f"the axes are in the order {axes}", changed)
    yield Change("axes", f"the shape is {list(x.shape)} for {list(o.shape)}", o.reshape(x.shape))


def in_other_order(x: Array, o: Array, heads: tuple[Array, Array] | None) -> Iterator[Change]:
    """Rows of other tokens, other heads, other features, and square axes exchanged."""
    if len(x) > 1:
        yield from _along(x, o, 0, "token", "position")
    if heads is not None and heads[0].shape[1] > 1:
        yield from (_flat(change, x) for change in _along(*heads, 1, "head", "heads"))
    if heads is not None:
        yield from (_flat(change, x) for change in _along(*heads, 2, "feature of a head", "permutation"))
    if x.ndim == 2 or heads is None:
        yield from _along(x, o, x.ndim - 1, "feature", "permutation")
    if heads is not None:
        n, n_heads, size = heads[1].shape
        turned = heads[1].reshape(n, size, n_heads).swapaxes(1, 2)
        yield _flat(Change("axes", "heads are split as [head_dim, n_heads]", turned), x)
        joined = heads[1].swapaxes(0, 1).reshape(heads[1].shape)
        yield _flat(Change("axes", "heads stand before tokens", joined), x)


def _flat(change: Change, x: Array) -> Change:
    return Change(change.kind, change.sentence, change.changed.reshape(x.shape))


def _along(x: Array, o: Array, axis: int, what: str, kind: str) -> Iterator[Change]:
    """Each slice along an axis is the oracle's slice that is nearest to it."""
    mine, theirs = (np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in (x, o))
    if len(mine) > MOST_COMPARED or mine.shape[1] < 2:
        return
    squares = np.sum(mine**2, axis=1)[:, None] + np.sum(theirs**2, axis=1) - 2 * mine @ theirs.T
    order = np.argmin(squares, axis=1)
    changed = np.take(o, order, axis=axis)
    lost = _not_there(order)
    if lost is not None:  # a shift: what comes in at the end is nobody's
        index: list[slice | Order] = [slice(None)] * x.ndim
        index[axis] = lost
        changed[tuple(index)] = x[tuple(index)]
    if not np.array_equal(order, np.arange(len(order))):
        yield Change(kind, _described(order, what), changed)


def _not_there(order: Order) -> Order | None:
    """Of a shift, the places whose source is beyond the end; None where it is no shift."""
    n = len(order)
    steps = np.arange(n) - order
    for step in sorted(set(steps.tolist()), key=abs):
        source = np.arange(n) - step
        inside = (source >= 0) & (source < n)
        if step and inside.sum() >= n - max(1, n // 4) and np.array_equal(order[inside], source[inside]):
            return np.flatnonzero(~inside)
    return None


def _described(order: Order, what: str) -> str:
    """An order in words where it has a name, else its beginning."""
    n = len(order)
    steps = (np.arange(n) - order) % n
    lost = _not_there(order)
    if lost is not None:
        inside = np.setdiff1d(np.arange(n), lost)
        step = int(inside[0] - order[inside[0]])
        ahead = "before" if step > 0 else "after"
        return (
            f"each {what} is the one {abs(step)} {ahead} it"
            if abs(step) > 1
            else f"each {what} is the one {ahead} it"
        )
    if np.all(order == order[0]):
        return f"every {what} is number {order[0]}"
    if np.array_equal(order, np.arange(n)[::-1]):
        return f"each {what} stands in reverse order"
    if np.all(steps == steps[0]):
        return f"each {what} is turned round by {steps[0]}"
    for size in range(2, n):
        if n % size == 0 and np.array_equal(order, np.arange(n).reshape(size, -1).T.ravel()):
            halves = (
                " (halves interleaved)" if size == 2 else " (even and odd parted)" if size == n // 2 else ""
            )
            return f"each {what} is read as [{n // size}, {size}] of [{size}, {n // size}]{halves}"
    moved = np.flatnonzero(order != np.arange(n))
    return f"{len(moved)} of {n} {what}s are others: {some([f'{i} is {order[i]}' for i in moved], 4)}"
