"""How far one tensor is from another. What the difference looks like is the diagnosis' to say.

With x the tensor on trial and o the oracle's:

    err         ||x - o|| / ||o||, over the whole tensor
    row_err     the same for each token's row; the largest counts, so no bad token hides among many
    element_err |x - o| / (|o| + rms of its row); the largest counts: nor does a bad element
    gain        <x - o, o> / <o, o>: the slope of x fitted to o, less one
    bias        mean(x - o) / rms(o)

Gain and bias are what rounding does not leave: it has no direction, so its mean over n elements
shrinks with sqrt(n), and a gain of 1.002 stands out long before it shows in err. numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Errors",
    "averaging",
    "causal_mask",
    "element_errors",
    "measure",
    "relative_error",
]

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

WELL_AVERAGED = 4096
"""Elements from which on a mean (gain, bias) is as quiet as its limit assumes."""


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
    """

    err: float
    row_err: float
    row: int
    element_err: float
    gain: float
    bias: float
    n: int
    n_gain: float


def causal_mask(positions: ArrayLike, sequence_ids: ArrayLike | None = None) -> Mask:
    """`[query, 1, key]`, True where the query may see the key: where `attn_scores` are judged."""
    position = np.asarray(positions)
    sequence = np.zeros_like(position) if sequence_ids is None else np.asarray(sequence_ids)
    seen: Mask = (position[None, :] <= position[:, None]) & (sequence[None, :] == sequence[:, None])
    return seen[:, None, :]


def measure(x: ArrayLike, o: ArrayLike, mask: Mask | None = None) -> Errors:
    """Measure x against o, arrays of one shape with the token first, where `mask` is True.

    A row whose norm in o is (nearly) nothing is measured against a tenth of the median row's, and
    against 1 where all are zero: there the errors are absolute.
    """
    trial, oracle, judged = _rows(x, o, mask)
    residual, scale = trial - oracle, _row_norms(oracle)
    row_errs = np.linalg.norm(residual, axis=1) / scale
    worst = int(np.argmax(row_errs))
    norm, n = _norm(oracle) or 1.0, int(judged.sum())
    scaled = oracle / norm  # divided first, lest the squares overflow
    squares = scaled * scaled
    return Errors(
        err=_norm(residual) / norm,
        row_err=float(row_errs[worst]),
        row=worst,
        element_err=float(_element_errors(residual, oracle, scale, judged).max()),
        gain=float(np.vdot(residual, scaled)) / norm,
        bias=float(residual.sum()) / (math.sqrt(max(n, 1)) * norm),
        n=n,
        n_gain=1.0 / (float(np.vdot(squares, squares)) or 1.0),
    )


def relative_error(x: ArrayLike, o: ArrayLike) -> float:
    """‖x − o‖ / ‖o‖ over all elements; ‖x − o‖ where o is all zeros; infinity where the shapes differ."""
    trial, exact = np.asarray(x, np.float64), np.asarray(o, np.float64)
    if trial.shape != exact.shape:
        return math.inf
    return _norm(trial - exact) / (_norm(exact) or 1.0)


def element_errors(x: ArrayLike, o: ArrayLike, mask: Mask | None = None) -> Array:
    """Each element's |x - o| / (|o| + rms of its row), flat rows; 0 where not judged."""
    trial, oracle, judged = _rows(x, o, mask)
    return _element_errors(trial - oracle, oracle, _row_norms(oracle), judged)


def _element_errors(residual: Array, oracle: Array, row_norms: Array, judged: Mask) -> Array:
    rms = row_norms / np.sqrt(np.maximum(judged.sum(axis=1), 1))
    errors: Array = np.abs(residual) / (np.abs(oracle) + rms[:, None])
    return errors


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


def _row_norms(oracle: Array) -> Array:
    norms = np.linalg.norm(oracle, axis=1)
    floored = np.maximum(norms, 0.1 * np.median(norms))
    return np.where(floored > 0, floored, 1.0)


def _norm(array: Array) -> float:
    return float(np.linalg.norm(array))
