"""Checkpoint 1B: RoPE: which pairs are turned, at which positions, by which theta.

Frequencies are handed over, so a wrong theta is that of a program which makes its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply, Patch, PatchedOracle
from llama_ckpt.identify.rope_numbers import (
    frequencies_of,
    is_plain,
    llama3_scaled,
    same_number,
    scale_of,
    theta_of,
)

__all__ = ["BUGS", "asked"]

Array: TypeAlias = NDArray[Any]


def asked(change: Callable[[Array, Array], tuple[Any, Any]]) -> Patch:
    """A right rotation by other angles: `change(positions, frequencies)`."""

    def rope(right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None) -> Any:
        return right.rope(q, k, *change(np.asarray(positions), np.asarray(frequencies)))

    return rope


def own_theta(theta: float) -> Patch:
    """Frequencies of this theta, whatever the file says; where the file says it, nothing is wrong."""

    def change(at: Array, f: Array) -> tuple[Array, Array]:
        if same_number(theta_of(f), theta) or not is_plain(f):
            raise DoesNotApply
        return at, frequencies_of(theta, len(f), scale_of(f))

    return asked(change)


def scaled(change: Callable[[Array, float], Array]) -> Patch:
    """Frequencies of another linear scaling: `change(frequencies, scale)`."""

    def rope(at: Array, f: Array) -> tuple[Array, Array]:
        if same_number(scale_of(f), 1.0):
            raise DoesNotApply
        return at, change(f, scale_of(f))

    return asked(rope)


def exponent_halved(at: Array, f: Array) -> tuple[Array, Array]:
    return at, frequencies_of(theta_of(f) ** 0.5, len(f), scale_of(f))


def in_order(order: Callable[[int], Array]) -> Patch:
    """Neighbours of the features in another order, `order(head_dim)`, are turned, and put back."""

    def rope(right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None) -> Any:
        there = order(np.asarray(q).shape[-1])
        back = np.argsort(there)
        turned = right.rope(np.asarray(q)[..., there], np.asarray(k)[..., there], positions, frequencies)
        return tuple(x[..., back] for x in turned)

    return rope


def halves_interleaved(d: int) -> Array:
    """0, d/2, 1, d/2 + 1, …: its neighbours are the pairs (i, i + d/2)."""
    return np.arange(d).reshape(2, d // 2).T.ravel()


def halves_parted(d: int) -> Array:
    """0, 2, 4, …, 1, 3, 5, …: a head's features as Hugging Face's weights order them."""
    return np.arange(d).reshape(d // 2, 2).T.ravel()


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


def keys_only(right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None) -> Any:
    return right.float64(q), right.rope(q, k, positions, frequencies)[1]


def keys_one_late(
    right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None
) -> Any:
    late = right.rope(q, k, np.asarray(positions) + 1, frequencies)[1]
    return right.rope(q, k, positions, frequencies)[0], late


def first_half_only(at: Array, f: Array) -> tuple[Array, Array]:
    """As GPT-NeoX does with its share of rotary features."""
    half = len(f) // 2
    return at, np.where(np.arange(2 * half) < half, f, 0.0)


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
    bug("half-split", "RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1)", in_order(halves_interleaved)),
    bug(
        "neighbours-of-halves",
        "RoPE turns neighbours (2i, 2i+1) of heads in Hugging Face's order, for pairs (i, i+d/2)",
        in_order(halves_parted),
    ),
    bug("theta-500000", "RoPE's theta is 500,000, Llama 3's", own_theta(5e5)),
    bug("theta-1000000", "RoPE's theta is 1,000,000, Code Llama's", own_theta(1e6)),
    bug("theta-10000", "RoPE's theta is 10,000, whatever the file says", own_theta(1e4)),
    bug("exponent-halved", "RoPE's exponent is i/d instead of 2i/d", asked(exponent_halved)),
    bug(
        "exponent-integer",
        "every pair of RoPE turns by 1 a token: the exponents are divided as integers",
        asked(lambda at, f: (at, np.full_like(f, f[0]))),
    ),
    bug("scaling-ignored", "the file's linear scaling of RoPE is ignored", scaled(lambda f, s: f * s)),
    bug("scaling-inverted", "RoPE's scaling multiplies where it divides", scaled(lambda f, s: f * s * s)),
    bug("scaling-twice", "RoPE's scaling is applied twice", scaled(lambda f, s: f / s)),
    bug(
        "scaling-of-llama-3",
        "RoPE's frequencies are scaled by 8 as Llama 3.1's are",
        asked(lambda at, f: (at, llama3_scaled(f, 8.0))),
    ),
    bug("position-plus-one", "RoPE's positions begin at 1", asked(lambda at, f: (at + 1, f))),
    bug("position-from-zero", "RoPE's positions begin at 0 in every call", asked(from_zero)),
    bug("angle-negative", "RoPE turns the other way", asked(lambda at, f: (-at, f))),
    bug("sin-cos-swapped", "RoPE's sine and cosine are swapped", sin_and_cos_swapped),
    bug("queries-only", "RoPE turns queries only, not keys", queries_only),
    bug("keys-only", "RoPE turns keys only, not queries", keys_only),
    bug("keys-one-late", "RoPE turns keys by the next position", keys_one_late),
    bug("first-half-only", "RoPE turns only the first half of each head", asked(first_half_only)),
    bug("head-for-token", "RoPE takes the head's number for the token's position", per_head),
    bug("pairs-reversed", "RoPE's frequencies run from slow to fast", asked(lambda at, f: (at, f[::-1]))),
)
