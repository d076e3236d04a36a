"""Formats that programs round to on the way, by the name that a sentence gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.floats import FLOATS, to_float
from llama_ckpt.judging.to_precision import cut_to_bfloat16, to_bfloat16, to_float16

__all__ = ["DIRECTED", "DROPS", "FORMATS", "goes", "one_way"]

Array: TypeAlias = NDArray[Any]

FORMATS: Mapping[str, Callable[[Array], Array]] = {
    "bfloat16": to_bfloat16,
    "float16": to_float16,
    "bfloat16 by cutting, not rounding,": cut_to_bfloat16,
}
"""Each to how it is come to."""

EQUAL = 0.9
"""Of the numbers that tell, so many are those of a rounding, where sums before it differ in last digits."""

LOOKED_AT, LOOSELY = 4096, 0.7
"""Of many numbers about so many are looked at first; of these so many must be those of a rounding."""

FEWEST = 32
"""So many numbers must tell: those that would be others, were they rounded to the nearest."""

DROPS = "a cast that drops digits: the upper half of a word taken, a shift, an integer conversion"
"""The code that rounds one way."""

WAYS: Mapping[str, Callable[[Array], Array]] = {
    "cut to {}, not rounded: all go toward zero": np.trunc,
    "rounded up to {}, away from zero, not to the nearest": lambda x: np.copysign(np.ceil(np.abs(x)), x),
    "rounded down to {}, toward minus infinity": np.floor,
    "rounded up to {}, toward infinity": np.ceil,
}
"""What is done with the digits beyond a format, where they are not rounded to the nearest."""


def _directed(name: str, whole: Callable[[Array], Array]) -> Callable[[Array], Array]:
    form = FLOATS[name]

    def rounding(x: Array) -> Array:
        _, exponent = np.frexp(x)
        step = np.ldexp(1.0, np.maximum(exponent - form.digits, form.smallest))
        return np.asarray(whole(np.asarray(x, np.float64) / step) * step)

    return rounding


DIRECTED: Mapping[str, tuple[str, Callable[[Array], Array]]] = {
    way.format(name): (name, _directed(name, whole))
    for name in ("bfloat16", "float16")
    for way, whole in WAYS.items()
}
"""Roundings whose errors all point one way, by what is said of them: the format, and finite float64 in it."""


def one_way(x: Array, o: Array) -> Iterator[str]:
    """In `DIRECTED`, those that o must have gone through to be x; nothing where it went to the nearest."""
    for said, (name, rounding) in DIRECTED.items():
        if goes(x, o, name, rounding):
            yield said


def goes(x: Array, o: Array, name: str, rounding: Callable[[Array], Array]) -> bool:
    """Whether x is o in this rounding: of numbers that are others to the nearest, nearly all."""
    if x.size > 2 * LOOKED_AT:
        every = slice(None, None, x.size // LOOKED_AT)
        tell, share = _equal(x.ravel()[every], o.ravel()[every], name, rounding)
        if tell >= FEWEST and share < LOOSELY:
            return False
    tell, share = _equal(x, o, name, rounding)
    return tell >= FEWEST and share >= EQUAL


def _equal(x: Array, o: Array, name: str, rounding: Callable[[Array], Array]) -> tuple[int, float]:
    """How many numbers tell, and of these the share that is as this rounding has it."""
    made = rounding(o)
    tells = (made != to_float(o, name)) & (made != o)
    return int(tells.sum()), float(np.mean(x[tells] == made[tells])) if tells.any() else 0.0
