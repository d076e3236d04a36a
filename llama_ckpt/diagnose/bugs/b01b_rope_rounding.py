"""Checkpoint 1B: RoPE's numbers rounded on the way: positions, frequencies, angles, the table, theta.

Float32 is enough for all of them and no bug. In bfloat16 whole numbers end at 256, in float16 at 2,048,
and an angle off by its last bit turns by whole degrees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.b01b_rope import asked
from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply, Patch, PatchedOracle
from llama_ckpt.identify.rope_numbers import frequencies_of, same_number, scale_of, theta_of
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]
Change: TypeAlias = Callable[[Array], Array]


def exact(x: Array) -> Array:
    return x


def tabled(angle: Change = exact, cos: Change = exact, sin: Change = exact) -> Patch:
    """A rotation by a table of its own, with the angles, cosines or sines changed."""

    def rope(right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None) -> Any:
        angles = angle(np.asarray(positions, np.float64)[:, None] * np.asarray(frequencies, np.float64))
        table = cos(np.cos(angles))[:, None], sin(np.sin(angles))[:, None]
        return tuple(turned(right.float64(x), *table) for x in (q, k))

    return rope


def turned(x: Array, cos: Array, sin: Array) -> Array:
    """Neighbours turned by a table `[n, 1, pairs]`, in the precision of x."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def within(rounded: Change) -> Patch:
    """Positions, frequencies and their product, all of them rounded, as `arange(n, dtype)` makes them."""

    def rope(right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None) -> Any:
        at, f = (rounded(np.asarray(x, np.float64)) for x in (positions, frequencies))
        return tabled(rounded)(right, q, k, at, f)

    return rope


def theta_rounded(at: Array, f: Array) -> tuple[Array, Array]:
    theta = float(to_bfloat16(np.asarray([theta_of(f)]))[0])
    if same_number(theta, theta_of(f)):
        raise DoesNotApply
    return at, frequencies_of(theta, len(f), scale_of(f))


def whole_numbers(at: Array, f: Array) -> tuple[Array, Array]:
    return at, np.trunc(f)


def of_positions(rounded: Change) -> Patch:
    return asked(lambda at, f: (rounded(at.astype(np.float64)), f))


def of_frequencies(rounded: Change) -> Patch:
    return asked(lambda at, f: (at, rounded(f.astype(np.float64))))


def bug(name: str, sentence: str, patch: Patch) -> Bug:
    return Bug(f"rope-{name}", sentence, "1B", "rope", patch)


def rounded_to(dtype: str, rounded: Change) -> tuple[Bug, ...]:
    """The same mistakes in either half precision."""
    return (
        bug(f"frequencies-{dtype}", f"RoPE's frequencies are rounded to {dtype}", of_frequencies(rounded)),
        bug(f"positions-{dtype}", f"RoPE's positions are rounded to {dtype}", of_positions(rounded)),
        bug(f"angles-{dtype}", f"RoPE's angles are rounded to {dtype}", tabled(angle=rounded)),
        bug(
            f"all-angles-{dtype}",
            f"RoPE's positions, frequencies and angles are in {dtype}",
            within(rounded),
        ),
        bug(
            f"table-{dtype}",
            f"RoPE's table of cosines and sines is rounded to {dtype}",
            tabled(cos=rounded, sin=rounded),
        ),
        bug(f"cosines-{dtype}", f"RoPE's cosines are rounded to {dtype}", tabled(cos=rounded)),
        bug(f"sines-{dtype}", f"RoPE's sines are rounded to {dtype}", tabled(sin=rounded)),
    )


BUGS = (
    *rounded_to("bfloat16", to_bfloat16),
    *rounded_to("float16", to_float16),
    bug("theta-bfloat16", "RoPE's theta is rounded to bfloat16", asked(theta_rounded)),
    bug(
        "whole-frequencies",
        "RoPE turns the first pair alone: frequencies cut to integers, or theta beyond its format",
        asked(whole_numbers),
    ),
)
