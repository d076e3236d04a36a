"""Errors of a part only: one bad token, head or feature; or a gain or bias for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.records import Change

__all__ = ["one_for_each", "only_some"]

Array: TypeAlias = NDArray[np.float64]

FEW = 0.25
"""Up to this share of the tokens, heads or features are called some."""

BAD = 0.01
"""A slice is bad when its error is more than this share of the worst one's."""


def only_some(x: Array, o: Array, heads: tuple[Array, Array] | None) -> Iterator[Change]:
    """Everything is right but for some tokens, heads, or features."""
    yield from _some(x, o, 0, "token")
    if heads is not None:
        for change in _some(*heads, 1, "head"):
            yield Change(change.kind, change.sentence, change.changed.reshape(x.shape))
    if x.ndim == 2:
        yield from _some(x, o, 1, "feature")


def _some(x: Array, o: Array, axis: int, what: str) -> Iterator[Change]:
    n = x.shape[axis]
    others = tuple(i for i in range(x.ndim) if i != axis)
    errors = np.sqrt(np.sum((x - o) ** 2, axis=others))
    bad = np.flatnonzero(errors > BAD * errors.max())
    if n < 2 or len(bad) > max(1, int(FEW * n)):
        return
    changed = o.copy()
    index = tuple(bad if i == axis else slice(None) for i in range(x.ndim))
    changed[index] = x[index]
    names = f"{what} {bad[0]} is" if len(bad) == 1 else f"{what}s {', '.join(map(str, bad[:6]))} are"
    yield Change(what, f"only {names} off, of {n}", changed)


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
