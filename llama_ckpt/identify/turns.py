"""What a rotation really did, measured from the tensors before and after it.

A rotation keeps the length of each pair that it turns, so that the pairs show whatever the angles are; then
the turn of each pair in each row is read off by least squares over the heads. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.matching import leaves_at_most

__all__ = ["Layout", "Others", "Turns", "layouts", "measured_turns", "turned"]

Array: TypeAlias = NDArray[Any]

KEPT = 3e-2
"""Pairs that were turned keep their lengths to this share, in any precision and with any rounded table."""

MOST = 4
"""So many rotations of one tensor are looked at."""

ROWS = 32
"""So many rows are looked at first."""


@dataclass(frozen=True)
class Others:
    """Other numbers than the right ones, and how to say them.

    Attributes:
        kind, words, code, tells, free, parameters: as in `Guess`.
        at: of each row, or of each pair.
    """

    kind: str
    words: str
    at: Array
    free: int = 1
    code: str = ""
    tells: str = "a longer prompt"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Pairs of a head's features: `a[i]` is turned with `b[i]`, the rest stays; and how to say that."""

    words: str
    a: Array
    b: Array


def layouts(d: int) -> Iterator[Layout]:
    """Ways to pair the features of a head, whole and partial; GGUF's own first."""
    parted = (
        np.arange(d).reshape(d // 2, 2).T.ravel()
    )  # where Hugging Face's feature j stands in GGUF's order
    for r in range(d, 0, -2):
        half = np.arange(r // 2)
        few = "" if r == d else f"RoPE turns only the first {r} of a head's {d} features"
        swapped = "RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1)"
        yield Layout(few, 2 * half, 2 * half + 1)
        yield Layout(f"{few}, as pairs (i, i+{r // 2})" if few else swapped, half, half + r // 2)
        if not few:
            yield Layout("RoPE turns pairs (i, d-1-i) instead of (2i, 2i+1)", half, d - 1 - half)
        if few:
            pairs = f"RoPE turns only the first {r // 2} of a head's {d // 2} pairs"
            yield Layout(f"{pairs} (i, i+{d // 2})", half, half + d // 2)
            where = f"{few} in Hugging Face's order"
            yield Layout(f"{where}, as pairs (i, i+{r // 2})", parted[half], parted[half + r // 2])
            yield Layout(f"{where}, as neighbours", parted[2 * half], parted[2 * half + 1])


@dataclass(frozen=True)
class Turns:
    """A wrong rotation of one tensor.

    Attributes:
        one: the tensor on trial; before: what was turned, `[n, heads, d]`.
        heads: those that are not right as they are.
        layout: which pairs.
        gain: by how much everything was multiplied as well; 1 where it was not.
        turn: the turn of each pair, complex `[n, pairs]`, its size a weight.
        left: the relative error that no angles remove.
    """

    one: Evidence
    before: Array
    heads: NDArray[np.int64]
    layout: Layout
    gain: float
    turn: Array
    left: float

    @property
    def tolerance(self) -> float:
        """The relative error that right angles may leave, generously."""
        return 4 * max(leaves_at_most(self.one.limit), self.one.limit.row_err)

    def misfit(self, angles: Array) -> float:
        """The relative error that these angles `[n, pairs]` leave beyond what none remove."""
        weight = float(np.sum(np.abs(self.turn))) or 1.0
        fit = float(np.sum(np.real(self.turn * np.exp(-1j * angles)))) / weight
        return float(np.sqrt(max(0.0, 2 * (1 - fit))))

    def predicted(self, cos: Array, sin: Array) -> Array:
        """The whole tensor, turned by a table `[n, pairs]`; heads that are right stay so."""
        made = np.array(self.one.o, np.float64)
        made[:, self.heads] = self.gain * turned(self.before[:, self.heads], self.layout, cos, sin)
        return made


def turned(x: Array, layout: Layout, cos: Array, sin: Array) -> Array:
    """`x [n, heads, d]` turned by a table `[n, pairs]`, or one for each head, `[n, heads, pairs]`."""
    if cos.ndim == 2:
        cos, sin = cos[:, None], sin[:, None]
    made = np.array(x, np.float64)
    a, b = x[..., layout.a], x[..., layout.b]
    made[..., layout.a], made[..., layout.b] = a * cos - b * sin, a * sin + b * cos
    return made


def measured_turns(one: Evidence, before: Any) -> Iterator[Turns]:
    """The rotations that `one.x` may be of `before`, that which leaves least first; a few at most."""
    x, y = np.asarray(before, np.float64), np.asarray(one.x, np.float64)
    if x.shape != y.shape or x.ndim != 3 or x.shape[-1] % 2 or not np.isfinite(y).all():
        return
    heads = _wrong_heads(one, y)
    if not len(heads):
        return
    few = _few_rows(one, x, y)
    found = []
    every = np.arange(x.shape[1])
    for layout in layouts(x.shape[-1]):
        # Of heads that are hardly off some pass by chance: all of them are tried as well, and first.
        for some in (every, heads) if len(heads) < len(every) else (heads,):
            if _measured(one, x[few], y[few], some, layout) is not None:
                turns = _measured(one, x, y, some, layout)
                if turns is not None:
                    found.append(turns)
    if not found:
        return
    # Several fit where little is turned: the first that leaves as little as rounding may, else the best.
    best = min(turns.left for turns in found)
    near = [turns for turns in found if turns.left <= max(turns.tolerance / 4, 3 * best)]
    still = all(not np.any(turns.turn.imag) for turns in near)
    yield from near[: 1 if still else MOST]


def _few_rows(one: Evidence, x: Array, y: Array) -> NDArray[np.int64]:
    """Those that are most off: enough to rule most layouts out."""
    off = np.linalg.norm((y - np.asarray(one.o, np.float64)).reshape(len(y), -1), axis=1)
    return np.argsort(off)[-ROWS:]


def _wrong_heads(one: Evidence, y: Array) -> NDArray[np.int64]:
    o = np.asarray(one.o, np.float64)
    error, size = (np.sqrt(np.sum(z * z, axis=(0, 2))) for z in (y - o, o))
    return np.flatnonzero(error > leaves_at_most(one.limit) * np.where(size > 0, size, 1.0))


def _measured(one: Evidence, x: Array, y: Array, heads: NDArray[np.int64], layout: Layout) -> Turns | None:
    """None where these pairs were not turned."""
    before, after = x[:, heads], y[:, heads]
    a, b = (z[..., layout.a] + 1j * z[..., layout.b] for z in (before, after))
    turn = np.sum(b * np.conj(a), axis=1)
    rest = np.setdiff1d(np.arange(x.shape[-1]), np.r_[layout.a, layout.b])
    size = float(np.sum(np.abs(a) ** 2) + np.sum(before[..., rest] ** 2))
    along = float(np.sum(np.abs(turn)) + np.sum(before[..., rest] * after[..., rest]))
    gain = along / (size or 1.0)
    whole = float(np.sum(after * after))
    left = np.sqrt(max(0.0, whole - gain * along) / (whole or 1.0))
    if not left <= KEPT:
        return None
    if abs(gain - 1) <= 4 * max(leaves_at_most(one.limit), left):
        gain = 1.0
    return Turns(one, x, heads, layout, gain, turn, float(left))
