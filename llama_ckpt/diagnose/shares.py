"""Errors of a part only: one bad token, head or feature; or a gain or bias for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.records import Change
from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.matching import leaves_at_most
from llama_ckpt.listing import which
from llama_ckpt.points import ALL_POINTS

__all__ = ["one_for_each", "only_some"]

Array: TypeAlias = NDArray[np.float64]

FEW = 0.25
"""Up to this share of the tokens, heads or features are called some."""

READ_POSITIONS = frozenset({"rope", "attention", "add", "output_logits"})
"""Functions that may go wrong and leave the first token as it is."""


def only_some(x: Array, o: Array, heads: tuple[Array, Array] | None, limit: Limit) -> Iterator[Change]:
    """Everything is right but for some tokens, heads, or features.

    Args:
        x, o: the tensor on trial and the oracle's; heads: both as `[token, head, feature]`.
        limit: what is within it is right, so it is not among those that are said to be off.
    """
    axes = ALL_POINTS[limit.point].axes if limit.point in ALL_POINTS else ()
    yield from _some(x, o, 0, "token", "token", limit)
    if heads is not None:
        head = "KV head" if "kv_head" in axes else "head"
        last = "key" if axes[-1:] == ("key",) else "head feature"
        for axis, kind, noun in ((1, "head", head), (2, "feature", last)):
            for change in _some(*heads, axis, kind, noun, limit):
                yield Change(change.kind, change.sentence, change.changed.reshape(x.shape))
    if x.ndim == 2:
        yield from _some(x, o, 1, "feature", "feature", limit)


def _some(x: Array, o: Array, axis: int, kind: str, noun: str, limit: Limit) -> Iterator[Change]:
    n = x.shape[axis]
    others = tuple(i for i in range(x.ndim) if i != axis)
    errors = np.sqrt(np.sum((x - o) ** 2, axis=others))
    norms = np.sqrt(np.sum(o * o, axis=others))
    equal_share = leaves_at_most(limit) * np.linalg.norm(norms) / np.sqrt(n)
    bad = np.flatnonzero(errors > np.maximum(equal_share, limit.row_err * norms))
    if n < 2 or not 0 < len(bad) <= max(1, int(FEW * n)) or _first_is_always_right(limit, axis, bad, n):
        return
    changed = o.copy()
    index = tuple(bad if i == axis else slice(None) for i in range(x.ndim))
    changed[index] = x[index]
    names = which(noun, bad, n)
    of = "" if f" of {n} " in names else f", of {n}"
    verb = "is" if len(bad) == 1 or names.startswith("every ") else "are"
    yield Change(kind, f"only {names} {verb} off{of}", changed)


def _first_is_always_right(limit: Limit, axis: int, bad: NDArray[np.int64], n: int) -> bool:
    """Of two tokens the first is not turned and sees itself alone: that the second is off says nothing."""
    if axis or n > 2 or 0 in bad:
        return False
    point = ALL_POINTS.get(limit.point)
    return limit.error_kind == "total" or (point is not None and point.function in READ_POSITIONS)


def one_for_each(x: Array, o: Array, heads: tuple[Array, Array] | None) -> Iterator[Change]:
    """A gain, then a bias, for each token, head, or feature: many numbers, so they are tried last."""
    if len(x) < 2:
        return
    yield from _fitted(x, o, 0, "token")
    if heads is not None:
        for change in _fitted(*heads, 1, "head"):
            yield Change(change.kind, change.sentence, change.changed.reshape(x.shape))
    yield from _fitted(x, o, x.ndim - 1, "feature")


def _fitted(x: Array, o: Array, axis: int, what: str) -> Iterator[Change]:
    others = tuple(i for i in range(x.ndim) if i != axis)
    square = np.sum(o * o, axis=others, keepdims=True)
    gains = np.sum(x * o, axis=others, keepdims=True) / np.where(square > 0, square, 1.0)
    yield Change(
        "gain", f"each {what} has a gain of its own, {gains.min():.6g} to {gains.max():.6g}", gains * o
    )
    biases = np.mean(x - o, axis=others, keepdims=True)
    yield Change(
        "bias", f"each {what} has a bias of its own, {biases.min():.3g} to {biases.max():.3g}", o + biases
    )
