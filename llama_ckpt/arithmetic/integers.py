"""Numbers as small integers with a common scale: a row of activations before its product with a weight.

A block of numbers, of 32 or 256 or a whole row, is divided by a scale and rounded to whole numbers. How
programs do it differs in what is left of the last bit, and one whole number more or less is seen in
the product; so the rules are written down here one by one, in float32 and in the program's order.

ggml's block formats keep beside q8_1's integers the block's sum, rounded by itself: where a weight has a
minimum, that is multiplied by this sum, not by the integers. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.errors import OptionError

__all__ = [
    "INTEGERS",
    "IntegerFormat",
    "IntegerRows",
    "Rounded",
    "either_scale",
    "either_sum",
    "integer_rows",
    "to_integers",
]

Array: TypeAlias = NDArray[np.float64]
Float32: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Rounded:
    """Numbers after rounding.

    Attributes:
        values: float64, in the shape of what was rounded.
        sums: `[..., groups]` float64, what the program takes for the sum of each group of `values`; None
            where it adds them up. A row has whole groups of one size.
    """

    values: Array
    sums: Array | None = None


@dataclass(frozen=True)
class IntegerFormat:
    """A rule of rounding to integers with a scale.

    Attributes:
        block: elements that share a scale; 0: all of a row; -1: all there are.
        most: the integer that the largest element gets.
        inverse: how an element is divided by the scale: by "largest", x · (most / largest); by "one",
            x · (most · (1 / largest)), which is what a GPU's fast division makes of it; by "scale",
            x · (1 / scale); by "division", x / scale. Each step is rounded to float32.
        ties: where a number in the middle of two integers goes: "even", or "away" from zero.
        scale: what the scale is kept in, "float32" or "float16".
        reciprocal: whether the scale is 1 / (most / largest), as `inverse` has it; else largest / most.
        signed: the largest is taken with its sign, and gets -most.
        sums: how a block's sum is kept: "" not at all; "scaled", float16 of scale · (sum of the integers);
            "halves", float16(sum of the integers) · float16(scale), in float16; "inputs", float16 of the
            sum of what is rounded; "most inputs", the same of every 16 elements, but of the last quarter of
            each 128 the integers are summed.
    """

    block: int
    most: int = 127
    inverse: str = "largest"
    ties: str = "even"
    scale: str = "float32"
    reciprocal: bool = False
    signed: bool = False
    sums: str = ""


_Q8_0 = IntegerFormat(32, scale="float16")
_PLAIN_Q8_0 = replace(_Q8_0, inverse="scale", ties="away")
_Q8_K = IntegerFormat(256, signed=True, reciprocal=True)
_MMQ = IntegerFormat(32, inverse="one", ties="away", reciprocal=True)
_ROWS = IntegerFormat(0, inverse="division")

INTEGERS: Final[Mapping[str, IntegerFormat]] = MappingProxyType(
    {
        "q8_0": _Q8_0,
        "q8_0-plain": _PLAIN_Q8_0,
        "q8_1": replace(_Q8_0, sums="scaled"),
        "q8_1-plain": replace(_PLAIN_Q8_0, sums="scaled"),
        "q8_1-candle": replace(_PLAIN_Q8_0, sums="halves"),
        "q8_1-cuda": replace(_PLAIN_Q8_0, sums="inputs"),
        "q8_1-mmq": replace(_MMQ, scale="float16", sums="inputs"),
        "q8-mmq": _MMQ,
        "q8_1-mmq-64": replace(_MMQ, block=64, scale="float16", sums="most inputs"),
        "q8-mmq-half": replace(_MMQ, scale="float16"),
        "q8_K": _Q8_K,
        "q8_K-128": replace(_Q8_K, most=128, ties="away"),
        "int8 per row": _ROWS,
        "int8 per tensor": replace(_ROWS, block=-1),
        "int16 per 32": IntegerFormat(32, most=32767, inverse="scale"),
        "int23 per 32": IntegerFormat(32, most=4194302, inverse="scale"),
        "int8 per 32": replace(_ROWS, block=32, ties="away"),
        "int8 per 64": replace(_ROWS, block=64, ties="away"),
    }
)
"""The rules by name; the first of each kind is llama.cpp's on a CPU with AVX, "plain" its loop in plain C."""


@dataclass(frozen=True, eq=False)
class IntegerRows:
    """Rows as a program has them before any product: a block in each row here.

    Attributes:
        blocks: what was rounded, float32 `[blocks, size]`.
        integers: `[blocks, size]`, whole numbers in float64.
        scale: `[blocks, 1]`, before it is kept; kept: as it is kept, float64.
        sums: of groups, float64, or None: see `Rounded`.
    """

    blocks: Float32
    integers: Array
    scale: Float32
    kept: Array
    sums: Array | None


def integer_rows(x: Array, name: str) -> IntegerRows:
    """Rows `x [..., in]` as integers and their scales.

    Raises:
        OptionError: a row is not made of whole blocks.
    """
    rule = INTEGERS[name]
    rows = x.astype(np.float32)
    size = x.size if rule.block < 0 else rule.block or x.shape[-1]
    if size == 0 or (rule.block > 0 and x.shape[-1] % size):
        raise OptionError(f"rows for {name}", got=f"{x.shape[-1]} elements", wanted=f"whole blocks of {size}")
    blocks = rows.reshape(-1, size)
    with np.errstate(all="ignore"):  # a row of zeros, or one with an infinity: what C makes of it
        integers, scale = _integers(blocks, rule)
        kept = scale.astype(rule.scale).astype(np.float64)
        return IntegerRows(blocks, integers, scale, kept, _sums(rule, blocks, integers, scale))


def to_integers(x: Array, name: str) -> Rounded:
    """Rows `x [..., in]` as integers times their scales.

    Raises:
        OptionError: a row is not made of whole blocks.
    """
    made = integer_rows(x, name)
    with np.errstate(all="ignore"):
        values = (made.integers * made.kept).reshape(x.shape)
    return Rounded(values, None if made.sums is None else made.sums.reshape(*x.shape[:-1], -1))


LAST_BITS = 2.0**-21
"""A scale's own rounding: a quick reciprocal, its product and another reciprocal, of an ulp each."""

SUM_BITS = 2.0**-22
"""What a sum of 16 to 64 numbers in float32 may be off by, of the sum of their sizes: in any order."""


def either_scale(x: Array, name: str) -> Array | None:
    """What values `[..., in]` change by where a scale may be kept in either of two float16; None: nowhere."""
    if INTEGERS[name].scale != "float16":
        return None
    made = integer_rows(x, name)
    apart = _apart(made.scale.astype(np.float64), LAST_BITS * np.abs(made.scale))
    return (np.abs(made.integers) * apart).reshape(x.shape) if apart.any() else None


def either_sum(x: Array, name: str) -> Array | None:
    """What sums `[..., groups]` change by where one may be kept in either of two float16; None: nowhere."""
    rule = INTEGERS[name]
    if rule.sums not in ("inputs", "most inputs"):
        return None
    groups = (
        x.astype(np.float32).astype(np.float64).reshape(*x.shape[:-1], -1, 16 if "most" in rule.sums else 32)
    )
    apart = _apart(groups.sum(axis=-1), SUM_BITS * np.abs(groups).sum(axis=-1))
    return apart if apart.any() else None


def _apart(x: Array, off: Array) -> Array:
    """How far apart in float16 the numbers lie that x may be."""
    with np.errstate(over="ignore"):
        up, down = ((x + sign * off).astype(np.float16).astype(np.float64) for sign in (1, -1))
    return np.abs(up - down)


def _integers(blocks: Float32, rule: IntegerFormat) -> tuple[Array, Float32]:
    """`[blocks, size]` whole numbers, and the scales `[blocks, 1]` before they are kept."""
    first = np.abs(blocks).argmax(axis=-1, keepdims=True)  # the first of equals, as a loop with > finds it
    largest = np.take_along_axis(blocks, first, axis=-1)
    most = np.float32(-rule.most if rule.signed else rule.most)
    if not rule.signed:
        largest = np.abs(largest)
    one = np.float32(1)
    inverse = most * (one / largest) if rule.inverse == "one" else most / largest
    scale = one / inverse if rule.reciprocal else largest / most
    if rule.inverse == "division":
        quotients = blocks / scale
    else:
        quotients = blocks * (one / scale if rule.inverse == "scale" else inverse)
    integers = _whole(quotients, rule.ties)
    if rule.most == 128:
        integers = np.minimum(integers, 127.0)  # which is what fits into a signed byte
    zero = largest == 0
    return np.where(zero, 0.0, integers), np.where(zero, np.float32(0), scale)


def _whole(x: Float32, ties: str) -> Array:
    if ties == "even":
        return np.rint(x).astype(np.float64)
    # x + 0.5 may round up in float32 where C's roundf does not: in float64 it is exact
    wide = x.astype(np.float64)
    return np.trunc(wide + np.copysign(0.5, wide))


def _sums(rule: IntegerFormat, blocks: Float32, integers: Array, scale: Float32) -> Array | None:
    if not rule.sums:
        return None
    if rule.sums == "most inputs":
        return _most_sums(blocks, integers * scale.astype(rule.scale))
    if rule.sums == "inputs":
        kept = blocks.astype(np.float64).sum(axis=-1).astype(np.float16)
    elif rule.sums == "scaled":
        kept = (integers.sum(axis=-1).astype(np.float32) * scale[:, 0]).astype(np.float16)
    else:
        kept = integers.sum(axis=-1).astype(np.float16) * scale[:, 0].astype(np.float16)
    return np.asarray(kept, np.float64)


def _most_sums(blocks: Float32, values: Array) -> Array:
    """Of groups of 16 float16 of the sum of what was rounded, in the last two of eight of the values."""
    inputs = blocks.astype(np.float64).reshape(-1, 16).sum(axis=-1).astype(np.float16)
    summed = values.reshape(-1, 16).sum(axis=-1)
    return np.asarray(np.where(np.arange(len(inputs)) % 8 >= 6, summed, inputs), np.float64)
