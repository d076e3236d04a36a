"""What simple change of the oracle's tensor gives the tensor on trial, and what is left then.

The changes are tried from the simplest on: a constant, the sign, a gain, a bias, rounding, saturation; rows
of other tokens or layers; heads, features or axes in another order; one bad token, head or feature; and a
gain or a bias for each of them. numpy only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.diagnose import orders, shares
from llama_ckpt.diagnose.records import Change, Finding
from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.matching import distance, leaves_at_most, passes
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16

__all__ = ["find_structure"]

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

MOST = 0.1
"""A change is reported when it leaves less than this share of the error."""

LARGEST_FLOAT16 = 65504.0

LARGE = 500_000
"""Elements of a tensor for which the first change that explains it is enough."""


def find_structure(
    x: ArrayLike,
    o: ArrayLike,
    *,
    limit: Limit,
    mask: Mask | None = None,
    n_heads: int | None = None,
    neighbours: Mapping[str, ArrayLike] | None = None,
) -> list[Finding]:
    """The changes that give x from o, the simplest first; where none does, those that give most of it.

    Args:
        x, o: the tensor on trial and the oracle's, the token first.
        limit: what holds at this point; a change explains x when the rest would pass.
        mask: where it is judged, as in `compare.judge`.
        n_heads: into how many heads a flat last axis is divided; not needed for three axes.
        neighbours: the oracle's tensors of other layers or points, by name.
    """
    trial, oracle = np.asarray(x, np.float64), np.asarray(o, np.float64)
    err = distance(trial, oracle, mask)
    if limit.dtype == "integer" or passes(trial, oracle, limit, mask):
        return []
    if mask is not None and trial.shape == oracle.shape:
        trial, oracle = np.where(mask, trial, 0.0), np.where(mask, oracle, 0.0)
    found: list[Finding] = []
    for change in _changes(trial, oracle, n_heads, neighbours or {}, limit):
        if any(one.explained and one.kind == change.kind for one in found):
            continue  # the same with more numbers to fit
        left = distance(trial, change.changed)
        # Most leave too much: the others alone are judged, which costs more.
        explained = left <= leaves_at_most(limit) and passes(trial, change.changed, limit)
        if explained or left < MOST * err:
            share = 1.0 if explained or not np.isfinite(err) else 1.0 - left / err
            found.append(Finding(change.kind, change.sentence, left, explained, share, leaves_at_most(limit)))
            if explained and oracle.size > LARGE:
                break  # what comes later says no more simply, and takes long
    whole = [one for one in found if one.explained]
    return whole or sorted(found, key=lambda one: one.remaining_error)


def _changes(
    x: Array, o: Array, n_heads: int | None, neighbours: Mapping[str, ArrayLike], limit: Limit
) -> Iterator[Change]:
    """Every change that is tried, the simplest first."""
    if x.shape != o.shape:
        yield from orders.other_axes(x, o)
        return
    if not np.isfinite(x).all():
        yield from _beyond_the_range(x, o)
        return
    yield from _of_all_elements(x, o)
    for name, array in neighbours.items():
        if np.shape(array) == x.shape:
            yield Change("layer", f"it is the tensor of {name}", np.asarray(array, np.float64))
    heads = _with_heads(x, o, n_heads)
    if x.ndim > 1:
        yield from orders.in_other_order(x, o, heads)
        yield from shares.only_some(x, o, heads, limit)
        yield from shares.one_for_each(x, o, heads)


def _line(x: Array, o: Array) -> tuple[float, float]:
    """Slope and offset of x over o by least squares."""
    middle, apart = float(np.mean(o)), o - np.mean(o)
    slope = float(np.vdot(apart, x) / np.vdot(apart, apart))
    return slope, float(np.mean(x)) - slope * middle


def _with_heads(x: Array, o: Array, n_heads: int | None) -> tuple[Array, Array] | None:
    """Both as `[token, head, feature]`; None where there are no heads."""
    if x.ndim == 3:
        return x, o
    if n_heads and x.ndim == 2 and x.shape[1] % n_heads == 0:
        shape = (len(x), n_heads, -1)
        return x.reshape(shape), o.reshape(shape)
    return None


def _beyond_the_range(x: Array, o: Array) -> Iterator[Change]:
    """Infinite where float16 ends."""
    beyond = np.abs(o) > LARGEST_FLOAT16
    changed = np.where(beyond, np.copysign(np.inf, o), o)
    yield Change("saturation", "it is infinite where the value is beyond float16's 65,504", changed)


def _of_all_elements(x: Array, o: Array) -> Iterator[Change]:
    """Changes that treat every element alike."""
    if np.ptp(x) == 0:
        what = "it is all zeros" if x.flat[0] == 0 else f"every element is {x.flat[0]:.6g}"
        yield Change("constant", what, x)
        return
    yield Change("sign", "the sign is flipped", -o)
    gain = float(np.vdot(x, o) / (np.vdot(o, o) or 1.0))
    yield Change("gain", f"there is a gain of {_number(gain, x.shape)}", gain * o)
    bias = float(np.mean(x - o))
    yield Change("bias", f"there is a bias of {bias:.6g}", o + bias)
    slope, offset = _line(x, o) if np.ptp(o) > 0 else (1.0, bias)
    both = f"there is a gain of {_number(slope, ())} and a bias of {offset:.6g}"
    yield Change("gain", both, slope * o + offset)
    for name, rounded in (("float16", to_float16), ("bfloat16", to_bfloat16)):
        if np.array_equal(rounded(x), x):
            yield Change("rounding", f"it is rounded to {name}", rounded(o))
    top = np.abs(x).max()
    if np.sum(np.abs(x) >= top * (1 - 1e-6)) > 1:
        yield Change("saturation", f"it is cut at {top:.6g}", np.clip(o, -top, top))


def _number(value: float, shape: tuple[int, ...]) -> str:
    """A number, and what it is of the shape's sizes: "8 = sqrt(64)"."""
    for size, power in itertools.product(dict.fromkeys(shape[:0:-1]), (0.5, -0.5, 1.0, -1.0)):
        if size >= 8 and abs(value / size**power - 1) < 1e-4:
            name = f"sqrt({size})" if abs(power) == 0.5 else str(size)
            return f"{value:.6g} = {'1/' if power < 0 else ''}{name}"
    if 0 < abs(value - 1) < 1e-5:  # six digits say a factor of 1, which changes nothing
        return f"1 {'+' if value > 1 else '-'} {abs(value - 1):.2g}"
    return f"{value:.6g}"
