"""Checkpoint 1B: RoPE.

Frequencies are handed over, so a wrong theta is that of a program which makes its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply, Patch, PatchedOracle
from llama_ckpt.diagnose.rounding import to_bfloat16

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]


def asked(change: Callable[[Array, Array], tuple[Any, Any]]) -> Patch:
    """A right rotation by other angles: `change(positions, frequencies)`."""

    def rope(right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None) -> Any:
        return right.rope(q, k, *change(np.asarray(positions), np.asarray(frequencies)))

    return rope


def own_frequencies(theta: float, step: float = 2.0) -> Patch:
    """Frequencies theta^(-step i / d), whatever the file says."""
    return asked(lambda at, f: (at, theta ** (-step * np.arange(len(f)) / (2 * len(f)))))


def half_split(
    right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None
) -> Any:
    """Pairs (i, i + d/2), as Hugging Face's weights are ordered."""
    d = np.asarray(q).shape[-1]
    order = np.arange(d).reshape(2, d // 2).T.ravel()  # 0, d/2, 1, d/2 + 1, …
    back = np.argsort(order)
    turned = right.rope(np.asarray(q)[..., order], np.asarray(k)[..., order], positions, frequencies)
    return tuple(x[..., back] for x in turned)


def sin_and_cos_swapped(
    right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None
) -> Any:
    """cos a = sin(pi/2 - a) and the reverse: turned by pi/2 - a."""
    angle = np.pi / 2 - np.asarray(positions)[:, None] * np.asarray(frequencies)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def turn(x: Array) -> Array:
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)

    return turn(right.float64(q)), turn(right.float64(k))


def queries_only(
    right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None
) -> Any:
    return right.rope(q, k, positions, frequencies)[0], right.float64(k)


def keys_one_late(
    right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None
) -> Any:
    late = right.rope(q, k, np.asarray(positions) + 1, frequencies)[1]
    return right.rope(q, k, positions, frequencies)[0], late


def first_half_only(
    right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None
) -> Any:
    """As GPT-NeoX does with its share of rotary features."""
    half = len(np.asarray(frequencies)) // 2
    return right.rope(q, k, positions, np.where(np.arange(2 * half) < half, frequencies, 0.0))


def per_head(right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None) -> Any:
    """The head's number in the place of the token's position: two axes mixed up."""
    flipped = (np.asarray(x).swapaxes(0, 1) for x in (q, k))
    turned = (right.rope(x, x, np.arange(len(x)), frequencies)[0] for x in flipped)
    return tuple(x.swapaxes(0, 1) for x in turned)


def from_zero(positions: Array, frequencies: Array) -> tuple[Array, Array]:
    if positions[0] == 0:
        raise DoesNotApply
    return positions - positions[0], frequencies


def bug(name: str, sentence: str, patch: Patch) -> Bug:
    return Bug(f"rope-{name}", sentence, "1B", "rope", patch)


BUGS = (
    bug("half-split", "RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1)", half_split),
    bug("theta-500000", "RoPE's theta is 500,000, Llama 3's", own_frequencies(5e5)),
    bug("theta-1000000", "RoPE's theta is 1,000,000, Code Llama's", own_frequencies(1e6)),
    bug("theta-10000", "RoPE's theta is 10,000, whatever the file says", own_frequencies(1e4)),
    bug("exponent-halved", "RoPE's exponent is i/d instead of 2i/d", own_frequencies(1e4, 1.0)),
    bug("position-plus-one", "RoPE's positions begin at 1", asked(lambda at, f: (at + 1, f))),
    bug("position-from-zero", "RoPE's positions begin at 0 in every call", asked(from_zero)),
    bug("angle-negative", "RoPE turns the other way", asked(lambda at, f: (-at, f))),
    bug("sin-cos-swapped", "RoPE's sine and cosine are swapped", sin_and_cos_swapped),
    bug("queries-only", "RoPE turns queries only, not keys", queries_only),
    bug("keys-one-late", "RoPE turns keys by the next position", keys_one_late),
    bug("first-half-only", "RoPE turns only the first half of each head", first_half_only),
    bug("head-for-token", "RoPE takes the head's number for the token's position", per_head),
    bug("pairs-reversed", "RoPE's frequencies run from slow to fast", asked(lambda at, f: (at, f[::-1]))),
    bug(
        "frequencies-bfloat16",
        "RoPE's frequencies are rounded to bfloat16",
        asked(lambda at, f: (at, to_bfloat16(f))),
    ),
)
