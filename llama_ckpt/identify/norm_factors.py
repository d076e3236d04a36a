"""What a norm divided each row by: an epsilon and its place, the width of the mean, another row.

numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.listing import which

__all__ = ["Factor", "factors"]

Array: TypeAlias = NDArray[Any]

SHARES = (2, 3, 4, 8, 16)
"""Ranks that a width is divided among."""


@dataclass(frozen=True)
class Factor:
    """Factors of the rows `[n]`, and how to say what they are; attributes as in `Guess`."""

    kind: str
    words: str
    at: Array
    free: int = 0
    code: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def factors(measured: Array, x: Array, eps: float, rows: NDArray[np.int64]) -> Iterator[Factor]:
    """What the measured factors of some rows may be, the simplest first.

    Args:
        measured: of `rows`; x: all that was normalized, `[n, width]`; eps: the right one.
    """
    squares = np.mean(x * x, axis=1)
    right = 1 / np.sqrt(squares + eps)
    yield Factor("norm.factor", "", right[rows])
    yield Factor("norm.factor", "rows are not divided by their size", np.ones(len(rows)))
    words = "rows are multiplied by their root mean square instead of divided by it"
    yield Factor("norm.factor", words, 1 / right[rows], 0, "sqrt for rsqrt")
    yield from _of_epsilon(measured, squares[rows], eps, x.shape[1])
    yield from _of_a_part(measured, x[rows], eps)
    yield from _of_other_rows(measured, right, rows)
    factor = float(np.median(measured / right[rows]))
    words = f"rows are multiplied by {factor:.6g} as well"
    yield Factor("norm.factor", words, factor * right[rows], 2, parameters={"factor": factor})
    if np.ptp(measured) <= 1e-5 * abs(float(measured.mean())) and len(rows) > 1:
        words = f"every row is multiplied by {measured.mean():.6g}, whatever its size"
        yield Factor("norm.factor", words, np.full(len(rows), measured.mean()), 1, "one factor kept for all")


def _of_epsilon(measured: Array, squares: Array, eps: float, width: int) -> Iterator[Factor]:
    """Inside the root, outside, per element of the sum, or as the least that counts."""
    weight = 1 / np.maximum(squares, 1e-300) ** 2
    inside = float(np.sum(weight * (1 / measured**2 - squares)) / np.sum(weight))
    root = np.sqrt(squares)
    away = 1 / np.maximum(root, 1e-300) ** 2
    outside = float(np.sum(away * (1 / np.abs(measured) - root)) / np.sum(away))
    code = "rms_norm_eps of another model, or a default"
    for one in _short(inside):
        if one >= 0:
            words = f"the norm's epsilon is {one:.3g} instead of {eps:.3g}"
            yield Factor("norm.epsilon", words, 1 / np.sqrt(squares + one), 1, code, {"epsilon": one})
    for one in _short(outside):
        if one > 0:
            words = f"the norm adds {one:.3g} outside of the root"
            made = 1 / (root + one)
            yield Factor("norm.epsilon", words, made, 1, "1 / (sqrt(x) + eps)", {"epsilon": one})
    least = float(np.min(1 / measured**2))
    words = f"the mean square is kept above {least:.3g}, instead of adding {eps:.3g}"
    made = 1 / np.sqrt(np.maximum(squares, least))
    yield Factor("norm.epsilon", words, made, 1, "max(x, eps) for x + eps", {"least": least})


def _short(value: float) -> tuple[float, ...]:
    """A digit, where the estimate is near to that, as people write it; and four."""
    if not np.isfinite(value) or value == 0:
        return (0.0,)
    short, longer = float(f"{value:.1g}"), float(f"{value:.4g}")
    return (short, longer) if abs(short / value - 1) < 0.02 and short != longer else (longer,)


def _of_a_part(measured: Array, x: Array, eps: float) -> Iterator[Factor]:
    """The mean over the first features only, over one rank's, or divided by another width."""
    width = x.shape[1]
    wanted = 1 / measured**2
    sums = np.cumsum(x * x, axis=1)
    counts = np.arange(1, width + 1)
    for divisor, over in ((counts, ""), (np.full(width, width), f", divided by all {width}")):
        off = np.abs((sums / divisor + eps) / wanted[:, None] - 1)
        last = int(np.argmin(np.median(off, axis=0)))
        if last < width - 1:
            words = f"the mean square is of features 0 to {last} of {width} alone{over}"
            made = 1 / np.sqrt(sums[:, last] / divisor[last] + eps)
            parameters = {"first": 0, "last": last}
            yield Factor("norm.width", words, made, 1, "a kernel's last tile is left out", parameters)
    ratio = float(np.median((wanted - eps) / (sums[:, -1] / width)))
    if ratio > 0:
        divisor = width / ratio
        whole = round(divisor)
        near = whole > 0 and abs(whole - divisor) < 1e-2
        words = f"the sum of squares is divided by {whole if near else divisor:.6g}, not by the width {width}"
        made = 1 / np.sqrt(sums[:, -1] / (whole if near else divisor) + eps)
        # Nobody divides by half a feature: where a factor says the same of the rows, that is meant.
        yield Factor("norm.width", words, made, 1 if near else 3, "", {"divisor": divisor})
    for ranks in SHARES:
        if width % ranks == 0:
            part = (x * x).reshape(len(x), ranks, -1).mean(axis=2)
            for rank in range(1, ranks):
                first, last = rank * width // ranks, (rank + 1) * width // ranks - 1
                words = f"the mean square is of features {first} to {last} of {width} alone"
                code = "each rank normalizes by its own part"
                yield Factor("norm.width", words, 1 / np.sqrt(part[:, rank] + eps), 1, code)


def _of_other_rows(measured: Array, right: Array, rows: NDArray[np.int64]) -> Iterator[Factor]:
    """Each row by the size of another one."""
    n = len(right)
    for shift in (-1, 1):
        at = np.clip(rows + shift, 0, n - 1)
        words = f"each row is divided by the size of the row {'before' if shift < 0 else 'after'} it"
        yield Factor("norm.rows", words, right[at], 0, "a factor kept from another row")
    first = right[:1] if n else right
    yield Factor("norm.rows", "all rows are divided by the size of the first", np.repeat(first, len(rows)))
    yield Factor(
        "norm.rows", "all rows are divided by the size of the last", np.repeat(right[-1:], len(rows))
    )
    off = np.abs(measured[:, None] / right - 1)
    chosen = np.argmin(off, axis=1)
    words = f"{which('token', rows, n)} are divided by the sizes of tokens {', '.join(map(str, chosen[:12]))}"
    yield Factor("norm.rows", words, right[chosen], len(rows), "", {"rows": chosen.tolist()})
