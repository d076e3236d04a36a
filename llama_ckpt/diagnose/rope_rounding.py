"""What RoPE's angles cost in a right program that builds them in float32, as nearly all do.

Position times a float32 frequency, or frequencies multiplied one after the other: both are off by a share
of the angle, so the error grows with the position. It is no bug, and it is worth knowing. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.rope_numbers import scale_of, theta_of

__all__ = ["cost_of_angles"]

Array: TypeAlias = NDArray[Any]
F = np.float32

ROUNDED = 2.0**-22
"""Rows further off than this show more than the rounding of a product and a sum."""

ROWS = 16
"""Tokens furthest out that are looked at."""

FAR = 32_000
"""Where the cost is stated as well."""

SHARE = 0.2
"""A way to build angles is recognized where it leaves less than this share of the error."""


def _exact(at: Array, frequencies: Array) -> Array:
    return np.asarray(at, np.float64)[:, None] * frequencies


def _product(at: Array, frequencies: Array) -> Array:
    return at.astype(F)[:, None] * frequencies.astype(F)


def _powers(at: Array, frequencies: Array) -> Array:
    """Frequencies computed in float32 as well, the reciprocal of a power of theta."""
    pairs = len(frequencies)
    f = F(1) / F(theta_of(frequencies)) ** (np.arange(pairs, dtype=F) / F(pairs))
    return at.astype(F)[:, None] * (f / F(scale_of(frequencies)))


def _repeated(at: Array, frequencies: Array) -> Array:
    """The angle multiplied by theta^(-2/d) from one pair to the next, as llama.cpp does."""
    pairs = len(frequencies)
    angles = np.empty((len(at), pairs), F)
    angle, step = at.astype(F) * F(frequencies[0]), F(theta_of(frequencies) ** (-1 / pairs))
    for i in range(pairs):
        angles[:, i] = angle
        angle = angle * step
    return angles


WAYS: Mapping[Callable[[Array, Array], Array], str] = {
    _product: "angles in float32",
    _powers: "angles in float32",
    _repeated: "angles by repeated multiplication in float32",
}
"""How right programs build angles, and what that is called."""


def cost_of_angles(x: Array, y: Array, positions: Array, frequencies: Array) -> str | None:
    """A sentence on what the angles of a rotation cost; None where nothing shows.

    Args:
        x, y: `[n, heads, head_dim]` before and after a rotation that passed.
        positions, frequencies: the right ones, `[n]` and `[pairs]`.
    """
    order = np.argsort(np.abs(positions), kind="stable")[-ROWS:]  # one position alone may be exact by chance
    before, after = (np.asarray(a, np.float64)[order] for a in (x, y))
    at, f = np.asarray(positions)[order], np.asarray(frequencies, np.float64)
    here = _error(after, before, _exact(at, f))
    if len(f) < 2 or not here > ROUNDED or not at[-1]:  # nothing is turned at position 0
        return None
    left = {way: _error(after, before, way(at, f)) for way in WAYS}
    way = min(left, key=left.__getitem__)
    known = left[way] < SHARE * here  # else another float32: powers of theta differ between libraries
    said = f"RoPE's {WAYS[way if known else _product]}: {_short(here)} here, at position {int(at[-1]):,}"
    if abs(at[-1]) >= FAR:
        return said
    beyond = _cost(before, f, way) if known else here * FAR / abs(float(at[-1]))
    return f"{said}, {_short(beyond)} at {FAR:,}"


def _error(y: Array, x: Array, angles: Array) -> float:
    """How far y is from x turned by these angles."""
    turned = _pairs(x) * np.exp(1j * angles.astype(np.float64))[:, None]
    return float(np.linalg.norm(_pairs(y) - turned) / (np.linalg.norm(turned) or 1.0))


def _pairs(x: Array) -> Array:
    return np.asarray(x[..., 0::2] + 1j * x[..., 1::2])


def _cost(x: Array, frequencies: Array, way: Callable[[Array, Array], Array]) -> float:
    """What a way to build angles costs such a vector far out; the mean over neighbouring positions."""
    at = np.arange(FAR - 8, FAR + 8)
    off = way(at, frequencies).astype(np.float64) - _exact(at, frequencies)
    weight = np.sum(np.abs(_pairs(x)) ** 2, axis=(0, 1))
    return float(np.sqrt(np.sum(weight * np.mean(off**2, axis=0)) / (np.sum(weight) or 1.0)))


def _short(value: float) -> str:
    """ "2e-5" """
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}e{int(exponent)}"
