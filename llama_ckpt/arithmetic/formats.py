"""The names of roundings, as an `Arithmetic` has them, and what each does to rows of numbers.

    float32, float64       not at all: float64 stands for both, and what float32 leaves is in the limits
    float16 bfloat16 tf32  and the other formats of `floats`
    float16+float16        a number in two parts, high and low
    float16+fp8_e4m3       the same with a low part in 8 bits (`rests`)
    fp8_e4m3 per row       fp8 with a scale that the largest number of a row, or of the tensor, sets
    q8_0, int8 per row     and the other rules of `integers`

numpy only.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.floats import FLOATS, FloatFormat, high_and_low, to_float
from llama_ckpt.arithmetic.integers import INTEGERS, IntegerFormat, Rounded, to_integers
from llama_ckpt.arithmetic.rests import RESTS, rest_described, two_parts
from llama_ckpt.errors import OptionError

__all__ = ["FORMATS", "SCALED", "UNROUNDED", "block_of", "check_format", "described", "round_rows", "rounded"]

Array: TypeAlias = NDArray[np.float64]

UNROUNDED: Final = frozenset({"float32", "float64"})
"""What the oracle's float64 stands for."""

_PAIRS = {f"{name}+{name}": name for name in ("float16", "bfloat16", "tf32")}
SCALED = {
    f"{name} per {all_of}": (name, all_of) for name in FLOATS for all_of in ("row", "tensor") if "fp8" in name
}

FORMATS: Final = ("float64", *FLOATS, *_PAIRS, *RESTS, *SCALED, *INTEGERS)
"""Every name."""


def check_format(name: object, what: str) -> str:
    """The name of a format, if it is one.

    Raises:
        OptionError: it is none; the message has the nearest names.
    """
    if isinstance(name, str) and name in FORMATS:
        return name
    near = get_close_matches(str(name), FORMATS, 3)
    hint = f"the nearest are {', '.join(near)}" if near else "`llama-ckpt explain arithmetic` lists them"
    raise OptionError(what, got=repr(name)[:60], wanted="the name of a rounding, such as float16", hint=hint)


def block_of(name: str) -> int:
    """How many numbers of a row must come together; 1 where any number of them does."""
    rule = INTEGERS.get(name)
    return rule.block if rule is not None and rule.block > 0 else 1


def described(name: str) -> str:
    """What a rounding does, in a few words."""
    if name in UNROUNDED:
        return "nothing: float64 stands for it"
    if name in _PAIRS:
        return f"two numbers of {_PAIRS[name]}, what the first leaves in the second"
    if name in RESTS:
        return rest_described(name)
    if name in SCALED:
        form, all_of = SCALED[name]
        most = f"{FLOATS[form].largest:g}"
        return f"{form} of x / scale; one float32 scale for a {all_of}, its largest number / {most}"
    return _of_integers(INTEGERS[name]) if name in INTEGERS else _of_floats(FLOATS[name])


def _of_floats(form: FloatFormat) -> str:
    ties = {"even": "ties to even", "away": "ties away from zero", "cut": "cut off"}[form.ties]
    beyond = "that at most" if form.saturates else "infinite beyond"
    return f"{form.digits} binary digits, {ties}; up to {form.largest:g}, {beyond}"


def _of_integers(rule: IntegerFormat) -> str:
    block = {0: "a row", -1: "a tensor"}.get(rule.block, f"{rule.block} numbers")
    largest = "largest with its sign" if rule.signed else "largest"
    most = f"-{rule.most}" if rule.signed else str(rule.most)
    divided = {
        "largest": f"x · ({most} / {largest})",
        "one": f"x · ({most} · (1 / {largest}))",
        "scale": "x · (1 / scale)",
        "division": "x / scale",
    }[rule.inverse]
    inverse = f"{most} · (1 / {largest})" if rule.inverse == "one" else f"{most} / {largest}"
    scale = f"1 / ({inverse})" if rule.reciprocal else f"{largest} / {most}"
    sums = {
        "": "",
        "scaled": "; sums kept: float16(scale · sum of integers)",
        "halves": "; sums kept: float16(sum of integers) · float16(scale), in float16",
        "inputs": "; sums kept: float16(sum of x)",
        "most inputs": "; sums kept: float16(sum of x) of every 16, but in the last quarter of each 128",
    }[rule.sums]
    ties = "ties to even" if rule.ties == "even" else "ties away from zero"
    return f"integers, {block} to a scale {scale} in {rule.scale}; {divided}, {ties}{sums}"


def rounded(x: Array, name: str) -> Array:
    """Rows `x [..., in]` rounded as a format says, float64."""
    return round_rows(x, name).values


def round_rows(x: Array, name: str) -> Rounded:
    """As `rounded`, with the sums of blocks where the format keeps them.

    Raises:
        OptionError: a row is not made of whole blocks.
    """
    if name in UNROUNDED:
        return Rounded(x)
    if name in _PAIRS:
        return Rounded(high_and_low(x, _PAIRS[name]))
    if name in RESTS:
        return Rounded(two_parts(x, name).whole)
    if name in SCALED:
        return Rounded(_scaled(x, *SCALED[name]))
    if name in INTEGERS:
        return to_integers(x, name)
    return Rounded(to_float(x, name))


def _scaled(x: Array, name: str, all_of: str) -> Array:
    """Divided by a float32 scale, which takes the largest number to the format's largest, and back."""
    axes = -1 if all_of == "row" else None
    largest = np.abs(x).max(axis=axes, keepdims=True).astype(np.float32)
    scale = np.where(largest > 0, largest / np.float32(FLOATS[name].largest), np.float32(1))
    quotients = (x.astype(np.float32) / scale).astype(np.float64)
    return to_float(quotients, name) * scale.astype(np.float64)
