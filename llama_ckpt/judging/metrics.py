"""How far one tensor is from another. What the difference looks like is the diagnosis' to say.

With x the tensor on trial and o the oracle's:

    err         ||x - o|| / ||o||, over the whole tensor
    row_err     the same for each token's row; the largest counts, so no bad token hides among many
    element_err |x - o| / (|o| + rms of its row); the largest counts: nor does a bad element
    gain        <x - o, o> / <o, o>: the slope of x fitted to o, less one
    bias        mean(x - o) / rms(o)
    turn        of what RoPE turned, by how many radians; `turns` has it

Gain and bias are what rounding does not leave: it has no direction, so its mean over n elements
shrinks with sqrt(n), and a gain of 1.002 stands out long before it shows in err. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.sums import inner, norm_of
from llama_ckpt.judging.turns import Turn

__all__ = [
    "Errors",
    "averaging",
    "causal_mask",
    "element_errors",
    "element_scale",
    "flat_rows",
    "floored_norms",
    "gain_elements",
    "measure",
    "relative_error",
    "row_scale",
]

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

WELL_AVERAGED = 4096
"""Elements from which on a mean (gain, bias) is as quiet as its limit assumes."""

PART = 1 << 17
"""Larger tensors are measured so many elements at a time."""


def averaging(n: float) -> float:
    """How much noisier a mean over `n` elements is than one over 4,096; never less than 1."""
    return max(1.0, math.sqrt(WELL_AVERAGED / max(n, 1.0)))


@dataclass(frozen=True)
class Errors:
    """How far x is from o; the module's docstring has the formulas.

    Attributes:
        err, row_err, element_err: relative errors, 0 or more.
        row: the token with the largest row_err.
        gain, bias: signed, 0 for a perfect x.
        n: how many elements were judged.
        n_gain: over how many the gain is in effect averaged, sum(o^2)^2 / sum(o^4): where a few elements
            dwarf the rest, as in trained models, they alone decide it.
        row_allowed, element_allowed: what that row and that element are allowed; NaN where all are alike.
        turn: the angle that is furthest off for what it is allowed; None where nothing was turned.
    """

    err: float
    row_err: float
    row: int
    element_err: float
    gain: float
    bias: float
    n: int
    n_gain: float
    row_allowed: float = math.nan
    element_allowed: float = math.nan
    turn: Turn | None = None


def causal_mask(positions: ArrayLike, sequence_ids: ArrayLike | None = None) -> Mask:
    """`[query, 1, key]`, True where the query may see the key: where `attn_scores` are judged."""
    position = np.asarray(positions)
    sequence = np.zeros_like(position) if sequence_ids is None else np.asarray(sequence_ids)
    seen: Mask = (position[None, :] <= position[:, None]) & (sequence[None, :] == sequence[:, None])
    return seen[:, None, :]


def measure(
    x: ArrayLike,
    o: ArrayLike,
    mask: Mask | None = None,
    *,
    rows: Array | None = None,
    elements: Array | None = None,
) -> Errors:
    """Measure x against o, arrays of one shape with the token first, where `mask` is True.

    With `rows` and `elements`, what each is allowed, the worst are those that use most of it.

    A row whose norm in o is (nearly) nothing is measured against a tenth of the median row's, and
    against 1 where all are zero: there the errors are absolute.
    """
    if np.ndim(o) > 1 and np.size(o) > PART:
        return _measured_in_parts(np.asarray(x), np.asarray(o), mask, rows, elements)
    trial, oracle, judged = _rows(x, o, mask)
    residual, scale = trial - oracle, row_scale(oracle)
    row_errs = _row_norms(residual) / scale
    element_errs = _element_errors(residual, oracle, scale, judged)
    worst = _worst(row_errs, rows)
    element = _worst(element_errs, elements)
    norm, n = norm_of(oracle) or 1.0, int(judged.sum())
    scaled = oracle / norm  # divided first, lest the squares overflow
    return Errors(
        err=norm_of(residual) / norm,
        row_err=float(row_errs[worst]),
        row=worst,
        element_err=float(element_errs.flat[element]),
        gain=inner(residual, scaled) / norm,
        bias=float(residual.sum()) / (math.sqrt(max(n, 1)) * norm),
        n=n,
        n_gain=_gain_elements(scaled),
        row_allowed=math.nan if rows is None else float(rows[worst]),
        element_allowed=math.nan if elements is None else float(elements.flat[element]),
    )


def _measured_in_parts(
    x: NDArray[Any], o: NDArray[Any], mask: Mask | None, rows: Array | None, elements: Array | None
) -> Errors:
    """The same, some rows at a time: so as to make no arrays of its size."""
    step = max(1, PART // max(1, o[0].size))
    parts = [slice(start, start + step) for start in range(0, len(o), step)]
    seen = None if mask is None else np.broadcast_to(mask, o.shape)

    def each() -> Iterator[tuple[slice, Array, Array, Mask]]:
        for part in parts:
            trial, oracle, judged = _rows(x[part], o[part], None if seen is None else seen[part])
            yield part, trial - oracle, oracle, judged

    norms, errors = np.empty((2, len(o)))
    total, n = 0.0, 0
    for part, residual, oracle, judged in each():
        norms[part], errors[part] = _row_norms(oracle), _row_norms(residual)
        total, n = total + float(residual.sum()), n + int(np.count_nonzero(judged))
    scale, norm = floored_norms(norms), norm_of(norms) or 1.0
    along = fourth = 0.0
    worst = (-math.inf, 0.0, math.nan)  # how far off for what it is allowed, its error, what it is allowed
    for part, residual, oracle, judged in each():
        scaled = oracle / norm
        squares = scaled * scaled
        along, fourth = along + inner(residual, scaled), fourth + inner(squares, squares)
        element_errs = _element_errors(residual, oracle, scale[part], judged)
        allowed = None if elements is None else elements[part]
        at = _worst(element_errs, allowed)
        error, most = float(element_errs.flat[at]), 1.0 if allowed is None else float(allowed.flat[at])
        share = error / most if most else math.inf if error else 0.0
        if share > worst[0]:
            worst = share, error, math.nan if allowed is None else most
    row_errs = errors / scale
    row = _worst(row_errs, rows)
    return Errors(
        err=norm_of(errors) / norm,
        row_err=float(row_errs[row]),
        row=row,
        element_err=worst[1],
        gain=along / norm,
        bias=total / (math.sqrt(max(n, 1)) * norm),
        n=n,
        n_gain=1.0 / (fourth or 1.0),
        row_allowed=math.nan if rows is None else float(rows[row]),
        element_allowed=worst[2],
    )


def gain_elements(o: Array) -> float:
    """Over how many elements of o a gain is in effect averaged; see `Errors.n_gain`."""
    return _gain_elements(o / (norm_of(o) or 1.0))


def _gain_elements(scaled: Array) -> float:
    squares = scaled * scaled
    return 1.0 / (inner(squares, squares) or 1.0)


def _worst(errors: Array, allowed: Array | None) -> int:
    """Where the largest error is, for what it is allowed where that is known."""
    if allowed is None:
        return int(np.argmax(errors))
    with np.errstate(divide="ignore", invalid="ignore"):
        return int(np.argmax(np.where(errors > 0, errors / allowed, 0.0)))


def relative_error(x: ArrayLike, o: ArrayLike) -> float:
    """‖x − o‖ / ‖o‖ over all elements; ‖x − o‖ where o is all zeros; infinity where the shapes differ."""
    trial, exact = np.asarray(x, np.float64), np.asarray(o, np.float64)
    if trial.shape != exact.shape:
        return math.inf
    return norm_of(trial - exact) / (norm_of(exact) or 1.0)


def element_errors(x: ArrayLike, o: ArrayLike, mask: Mask | None = None) -> Array:
    """Each element's |x - o| / (|o| + rms of its row), flat rows; 0 where not judged."""
    trial, oracle, judged = _rows(x, o, mask)
    return _element_errors(trial - oracle, oracle, row_scale(oracle), judged)


def _element_errors(residual: Array, oracle: Array, row_norms: Array, judged: Mask) -> Array:
    errors: Array = np.abs(residual) / element_scale(oracle, row_norms, judged)
    return errors


def element_scale(oracle: Array, row_norms: Array, judged: Mask) -> Array:
    """What each element's error is measured against: itself and its row's rms."""
    rms = row_norms / np.sqrt(np.maximum(judged.sum(axis=1), 1))
    return np.asarray(np.abs(oracle) + rms[:, None])


def flat_rows(o: ArrayLike, mask: Mask | None) -> tuple[Array, Mask]:
    """float64, one row a token, zero where not judged; and where it is judged."""
    _, oracle, judged = _rows(o, o, mask)
    return oracle, judged


def _rows(x: ArrayLike, o: ArrayLike, mask: Mask | None) -> tuple[Array, Array, Mask]:
    """float64, one row a token (a single row where there is but one axis), zero where not judged."""
    oracle = np.asarray(o, dtype=np.float64)
    trial = np.asarray(x, dtype=np.float64)
    shape = (oracle.shape[0] if oracle.ndim > 1 else 1, -1)
    if mask is None:
        return trial.reshape(shape), oracle.reshape(shape), np.ones(oracle.shape, bool).reshape(shape)
    judged = np.broadcast_to(mask, oracle.shape)
    kept = np.where(judged, trial, 0.0), np.where(judged, oracle, 0.0)
    return kept[0].reshape(shape), kept[1].reshape(shape), judged.reshape(shape)


def row_scale(oracle: Array) -> Array:
    """What each row's error is measured against: its norm, or a tenth of the median row's."""
    return floored_norms(_row_norms(oracle))


def floored_norms(norms: Array) -> Array:
    """The same, of the norms of all rows."""
    floored = np.maximum(norms, 0.1 * _median(norms))
    return np.where(floored > 0, floored, 1.0)


# What numpy.linalg.norm and numpy.median compute, bit for bit. A ladder measures thousands of tensors of few
# rows, on which those two look at what they are given ten times longer than they compute.
def _row_norms(array: Array) -> Array:
    return np.asarray(np.sqrt(np.add.reduce(array * array, axis=1)))


def _median(values: Array) -> float:
    ordered = np.sort(values)
    half = len(ordered) // 2
    if not len(ordered) or math.isnan(ordered[-1]):  # NaN is sorted to the end
        return math.nan
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)
