"""What each kind of step leaves, and what came with what it reads: the deviations and where they point.

`rounding_steps` has the arrays, `rounding_modes` the directions; here both are put together as `Spread`s,
which go from step to step. A step whose inputs are exact has none that came. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.directions import most_equal
from llama_ckpt.judging.norm_rounding import (
    CHANCE,
    norm_apart,
    norm_deviation,
    norm_lost,
    norm_shared,
    roots_alike,
)
from llama_ckpt.judging.rounding_modes import (
    aligned_sums,
    gated_mode,
    norm_mode,
    product_mode,
    row_sums,
    sums_of,
    together,
)
from llama_ckpt.judging.rounding_steps import (
    EXP_ROUNDINGS,
    PRECISIONS,
    Precision,
    angle_error,
    gated,
    gated_by_tanh,
    product_deviation,
    to_half,
    turned_deviation,
    turned_most,
)
from llama_ckpt.judging.spread import RowSums, Spread
from llama_ckpt.judging.turns import angles_of
from llama_ckpt.oracle import llama as oracle

__all__ = [
    "EMULATED",
    "FUSED",
    "biased_spread",
    "gated_spread",
    "mixed_spread",
    "norm_spread",
    "product_spread",
    "scores_spread",
    "softmax_spread",
    "sum_spread",
    "turned_spread",
]

Array: TypeAlias = NDArray[np.float64]

# What a GPU's functions err by on average, in roundings: they are not rounded correctly, and lean one way.
ROOT = 0.25
"""A reciprocal root: rows were 0.45 too small on average (CUDA's rsqrt, 600 rows)."""

TURNED = 0.07
"""Cosines and sines: what they turned was 0.16 too long (CUDA's cosf and sinf), a third of it a deviation."""

LONGER = 0.05
"""Of what an angle may be off by, where a cosine is the sine of an angle pi/2 further on that is rounded by
itself: a pair comes out longer or shorter then (tinygrad's, 600 positions: by 10.9 roundings, of 208)."""

EMULATED = 8.0
"""A number in a fused attention in float32, which a GPU's tensor cores multiply as two of TF32 each: what is
cut off and left out of a product is up to 3 * 2^-20 of it, 48 roundings, which are six deviations."""

FUSED = 4.0
"""Exponentials, sum and its reciprocal inside a fused attention: contexts were off by up to 6.5."""


AT_ONCE = 1 << 21
"""So many elements of what a step reads are looked at together: a dozen arrays of that size are in memory."""


def _a_few_rows_at_a_time(make: Callable[[slice], Spread], read: Array) -> Spread:
    """The spread of a step that goes row by row, put together; read: what it reads, `[n, ...]`."""
    step = max(1, AT_ONCE * len(read) // max(read.size, 1))
    if step >= len(read):
        return make(slice(None))
    found = [make(slice(start, start + step)) for start in range(0, len(read), step)]
    modes = [one.mode for one in found if one.mode is not None]
    sums = [one.sums for one in found if one.sums is not None]
    joined = (
        (np.concatenate([one.along for one in sums]), np.concatenate([one.plain for one in sums]))
        if sums
        else None
    )
    equal = np.sum([np.sqrt(one.equal) for one in found], axis=0) ** 2
    return Spread(
        np.concatenate([one.deviation for one in found]),
        mode=np.concatenate(modes) if modes else None,
        sums=None if joined is None else RowSums(*joined),
        equal=(float(equal[0]), float(equal[1])),
    )


def norm_spread(
    x: Array, weight: ArrayLike, y: Array, eps: float, p: Precision, came: Spread | None = None
) -> Spread:
    """Of an RMS norm `[n, width]`: a row has its root in common, a column its weight, in half precision."""
    factor = np.asarray(weight, np.float64)
    own = norm_deviation(x, factor, y, eps, p)
    common: dict[str, Any] = {
        "shared": norm_shared(x, eps, p),
        "columns": p.half,
        "everywhere": float(np.hypot(ROOT * p.u, _lost_in_all(x, y, p))),
        "equal": roots_alike(x, y, eps, p),
    }
    if came is None:
        mode = norm_mode(x, factor, y, eps, p)
        return Spread(own, mode=mode, apart=norm_apart(factor, y, p), **common)
    whole = norm_deviation(x, factor, y, eps, p, came.whole)
    mode = norm_mode(x, factor, y, eps, p, came.mode)
    return Spread(whole, mode=mode, sums=aligned_sums(y, own, whole), **common)


def _lost_in_all(x: Array, y: Array, p: Precision) -> float:
    """What the roots lose in all rows together, since each loses: a share of y."""
    energy = np.einsum("rc,rc->r", y, y)
    total = float(energy.sum())
    return float(norm_lost(x, p)[:, 0] @ energy) / total if total else 0.0


def product_spread(x: Array, w: Any, y: Array, p: Precision, came: Spread | None = None) -> Spread:
    """Of y = x w^T, `[n, ...]`."""
    if came is None:
        return Spread(product_deviation(x, w, y, p)[0], equal=_of_rounded_inputs(x, w, y, p))
    return _a_few_rows_at_a_time(lambda r: _product_rows(x[r], w, y[r], p, came.rows(r)), x)


def _product_rows(x: Array, w: Any, y: Array, p: Precision, came: Spread) -> Spread:
    own, through = product_deviation(x, w, y, p, came.beside_mode)
    assert through is not None
    onward = None if came.mode is None else np.matmul(came.mode, w.T)
    mode = together(onward, product_mode(w, came.beside_mode, len(y)))
    assert mode is not None
    mode = mode.reshape(y.shape)
    whole = np.sqrt(own**2 + through**2 + mode**2)
    if came.onward is not None:
        sums = sums_of(y, own).and_of(came.onward)
    elif came.sums is None and not came.aligned:
        sums = sums_of(y, own).and_of(row_sums(y, w, came.beside_mode))
    else:
        return Spread(whole, mode=mode, sums=aligned_sums(y, own, whole))
    if onward is not None:
        flat = y.reshape(len(y), -1)
        sums = sums.and_of(RowSums(np.abs(np.sum(onward * flat, axis=1)), np.abs(onward.sum(axis=1))))
    return Spread(whole, mode=mode, sums=sums)


def _of_rounded_inputs(x: Array, w: Any, y: Array, p: Precision) -> tuple[float, float]:
    """What y = x w^T is off by along it and in sum, squares, where x is rounded to half precision for it.

    Autocast does so to a norm that was recorded in float32: an error of x is one for all outputs. Nothing
    where x is in half precision already.
    """
    if not p.half:
        return 0.0, 0.0
    off = to_half(x, p) - x
    if not off.any():
        return 0.0, 0.0
    moved = np.matmul(off, w.T).reshape(y.shape)
    return float(np.vdot(moved, y)) ** 2, float(moved.sum()) ** 2


def biased_spread(x: Array, w: Any, y: Array, bias: Any, dtype: str, came: Spread | None = None) -> Spread:
    """Of y = x w^T + bias, `[n, ...]`; without a bias as `product_spread`."""
    p = PRECISIONS[dtype]
    if bias is None:
        return product_spread(x, w, y, p, came)
    added = np.broadcast_to(np.asarray(bias, np.float64).reshape(y.shape[1:]), y.shape)
    product = product_spread(x, w, y - added, p, came)
    once = p.half * added  # what the bias loses in half precision, a column alike
    return sum_spread(y - added, added, dtype, product, Spread(np.abs(once), mode=once))


def turned_spread(
    x: Array,
    y: Array,
    positions: Any,
    frequencies: Any,
    p: Precision,
    exact_angles: bool,
    came: Spread | None = None,
) -> Spread:
    """Of heads `[n, heads, head_dim]` turned by RoPE, x before and y after."""
    own, equal = turned_deviation(x, p), np.inf if came is not None else most_equal(x, half=p.half > 0)
    angles = angles_of(positions, frequencies, p, exact=exact_angles, equal=equal)
    most, lean, common = None, 0.0, float(np.hypot(TURNED * p.u, rounded_turns(x, positions, frequencies, p)))
    if not exact_angles:
        most, lean = turned_most(x, positions, frequencies)
        common = float(np.hypot(common, longer(x, positions, frequencies)))
    if came is None:
        return Spread(own, most, lean, everywhere=common, angles=angles)
    whole = turned_deviation(x, p, came.whole)
    mode = came.mode
    if mode is not None:
        mode = oracle.rope(mode, mode[:, :0], positions, frequencies)[0]
    sums = aligned_sums(y, own, whole)
    return Spread(whole, most, lean, mode=mode, sums=sums, everywhere=common, angles=angles)


def longer(x: Array, positions: Any, frequencies: Any) -> float:
    """By what share heads `[n, heads, head_dim]` may come out longer in all: what heads have in common."""
    pairs = np.square(x[..., 0::2]) + np.square(x[..., 1::2])
    energy = pairs.sum(axis=1)
    moved = energy * angle_error(positions, frequencies)
    return LONGER * float(np.linalg.norm(moved) / max(energy.sum(), np.finfo(np.float64).tiny))


def rounded_turns(x: Array, positions: Any, frequencies: Any, p: Precision) -> float:
    """By what share heads `[n, heads, head_dim]` come out longer where cosine and sine are in half precision.

    What turns slowly has the same cosine for many tokens, and all heads have it.
    """
    if not p.half:
        return 0.0
    angles = np.asarray(positions, np.float64)[:, None] * np.asarray(frequencies, np.float64)
    longer = sum(turn * to_half(turn, p) for turn in (np.cos(angles), np.sin(angles))) - 1.0
    energy = np.sum(np.square(x[..., 0::2]) + np.square(x[..., 1::2]), axis=1)
    return float(abs(np.vdot(energy, longer)) / max(energy.sum(), np.finfo(np.float64).tiny))


def scores_spread(
    deviation: Any, p: Precision, *, aligned: bool, equal: tuple[float, float] = (0.0, 0.0)
) -> Spread:
    """Of attention's scores, whose scale may have been in queries or keys, and been taken out again.

    Args:
        deviation: theirs. aligned: q or k came with deviations of their own.
        equal: what q's and k's equal numbers come to, as `scores_together` has it.
    """
    return Spread(deviation, aligned=aligned, everywhere=p.u + 0.5 * p.half, equal=equal)


def gated_spread(
    gate: Array, up: Array, p: Precision, came_gate: Spread | None = None, came_up: Spread | None = None
) -> Spread:
    """Of silu(gate) * up `[n, ...]`."""

    def of(spread: Spread | None, rows: slice) -> Spread | None:
        return None if spread is None else spread.rows(rows)

    return _a_few_rows_at_a_time(
        lambda r: _gated_rows(gate[r], up[r], p, of(came_gate, r), of(came_up, r)), gate
    )


def _gated_rows(
    gate: Array, up: Array, p: Precision, came_gate: Spread | None, came_up: Spread | None
) -> Spread:
    off_gate, off_up = (None if one is None else one.whole for one in (came_gate, came_up))
    mode_gate, mode_up = (None if one is None else one.mode for one in (came_gate, came_up))
    product, whole = gated(gate, up, off_gate, off_up, p)
    mode, equal = gated_mode(gate, up, mode_gate, mode_up), (0.0, 0.0)
    if (lost := gated_by_tanh(gate, up, p)) is not None:
        mode = together(mode, lost)
        equal = float(np.vdot(np.abs(lost), np.abs(product))) ** 2, float(lost.sum()) ** 2
    if all(one is None or (one.sums is None and not one.aligned) for one in (came_gate, came_up)):
        # A gate's own rounding and an up's are each element's apart.
        return Spread(whole, mode=mode, equal=equal)
    own = gated(gate, up, None, None, p)[1]
    return Spread(whole, mode=mode, sums=aligned_sums(product, own, whole), equal=equal)


def softmax_spread(weights: Array, off: Array, p: Precision) -> Spread:
    """Of a softmax over a few scores `[n, k]`, `off` as the scores are."""
    mean = np.sum((weights * off) ** 2, axis=1, keepdims=True)  # the sum is off by what it is made of
    relative = np.sqrt(off**2 + mean + (EXP_ROUNDINGS * p.u + 2 * p.half) ** 2)
    return Spread(weights * relative + p.least)


def mixed_spread(out: Array, weights: Array, off: Array, came: Spread, p: Precision) -> Spread:
    """Of vectors `[n, k, width]`, each times its weight `[n, k]`, and added; `off` as the vectors are."""
    wide, off_weights = weights[..., None], came.whole[..., None]
    terms = wide * out
    roundings = (p.u + p.half) ** 2 * (2 * terms**2 + np.cumsum(terms, axis=1) ** 2)
    each = (wide * off) ** 2 + (out * off_weights) ** 2 + roundings
    # A weight that is off makes all that its expert made larger or smaller.
    shared = np.max(came.whole / weights, axis=1, keepdims=True)
    return Spread(np.sqrt(each.sum(axis=1)) + p.least, shared=shared)


def _one_way(exact: Array, p: Precision) -> tuple[float, float]:
    """What rounding a sum comes to along it and in sum, squares: where one term is less than the other's last
    digit it is lost, and what is lost may have a mean. No more than chance is nothing.
    """
    if not p.half:
        return 0.0, 0.0
    off = to_half(exact, p) - exact
    found = [(float(each.sum()) ** 2, float(np.vdot(each, each))) for each in (off * exact, off)]
    along, plain = (square if square > CHANCE**2 * chance else 0.0 for square, chance in found)
    return along, plain


def sum_spread(a: ArrayLike, b: ArrayLike, dtype: str, *carried: Spread | None) -> Spread:
    """Of a + b, as at a residual; carried: what the two deviate by already.

    The terms count as well as the sum: what was recorded of them may be rounded where the program had more.
    """
    p, first, second = PRECISIONS[dtype], np.asarray(a, np.float64), np.asarray(b, np.float64)
    own = (p.u + p.half) ** 2 * (first**2 + second**2 + (first + second) ** 2) + p.least**2
    came = [one for one in carried if one is not None]
    if not came:
        return Spread(np.sqrt(own), equal=_one_way(first + second, p))
    whole = np.sqrt(own + sum(one.whole**2 for one in came))
    mode = reduce(together, (one.mode for one in came))
    return Spread(whole, mode=mode, sums=aligned_sums(first + second, np.sqrt(own), whole))
