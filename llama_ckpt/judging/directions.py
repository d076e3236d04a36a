"""What rounding may come to as a gain or as a bias, where its errors point one way.

Rounding has no direction of its own: over n elements a gain or a bias shrinks with sqrt(n). But errors
are not always apart:

    a row's          a norm's root or a softmax's sum is rounded once, and all that it divides is off alike
    a column's       a norm's weight is rounded once, in half precision, for all tokens
    all elements     a constant, such as the scores' scale, is rounded once
    along a row      an error made before a product goes through weights that may share a direction
    rows alike       equal tokens are wrong alike; in half precision similar ones too, since a rounded weight
                     errs with every row that it multiplies

Here these are added up: the standard deviations of gain and bias as `metrics` defines them. numpy only.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.spread import Spread

__all__ = ["gain_and_bias", "rows_alike"]

Array: TypeAlias = NDArray[np.float64]

LOOKED_AT = 2048
"""Columns of a row that are compared with another row's, at most."""

PROJECTED = 32
"""Numbers that stand for a row where rows are compared: a cosine is known to 1/sqrt(32)."""


def gain_and_bias(o: Array, deviation: Array, spread: Spread, *, half: bool) -> tuple[float, float]:
    """The deviations of the gain and of the bias of a tensor.

    Args:
        o: the oracle's `[rows, columns]`, zero where not judged. deviation: of each element, the same.
        spread: where it comes from. half: the program rounds to half precision.
    """
    size = float(np.linalg.norm(o))
    if size == 0:
        return 0.0, 0.0
    exact, off = o / size, deviation / size
    rows = np.einsum("rc,rc->r", exact, exact)
    if spread.aligned:
        squares = np.einsum("rc,rc->r", off, off)
        gains, biases = squares * rows, squares * o.shape[1]
    elif spread.sums is not None:
        gains, biases = (spread.sums.along / size**2) ** 2, (spread.sums.plain / size) ** 2
    else:
        gains = np.einsum("rc,rc,rc,rc->r", off, off, exact, exact, optimize=False)
        biases = np.einsum("rc,rc->r", off, off)
    if spread.shared is not None:
        shared = np.broadcast_to(spread.shared, (len(o), 1))[:, 0] ** 2
        gains = gains + shared * rows**2
        biases = biases + shared * exact.sum(axis=1) ** 2
    alike = rows_alike(o, half=half)
    gain, bias = float(np.sum(alike * gains)), float(np.sum(alike * biases))
    if spread.columns:
        gain += spread.columns**2 * float(np.sum(np.einsum("rc,rc->c", exact, exact) ** 2))
        bias += spread.columns**2 * float(np.sum(exact.sum(axis=0) ** 2))
    gain += spread.everywhere**2
    bias += (spread.everywhere * float(exact.sum())) ** 2
    return gain**0.5, (bias / o.size) ** 0.5


def rows_alike(o: Array, *, half: bool) -> Array:
    """For each row how many rows are wrong as it is, itself counted, `[rows]`.

    Equal rows count whole; in half precision any by the square of the cosine between them.
    """
    if len(o) == 1:
        return np.ones(1)
    some = o[:, :: -(-o.shape[1] // LOOKED_AT)]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (some.shape[1], PROJECTED))
    short = some @ signs
    norms = np.linalg.norm(short, axis=1, keepdims=True)
    short = short / np.where(norms > 0, norms, 1.0)
    squares = (short @ short.T) ** 2
    if not half:
        return np.asarray(np.maximum((squares > 1 - 1e-9).sum(axis=1), 1.0))
    by_chance = (len(o) - 1) / PROJECTED
    return np.asarray(np.maximum(squares.sum(axis=1) - by_chance, 1.0))
