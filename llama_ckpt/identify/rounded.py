"""Formats that programs round to on the way, by the name that a sentence gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from numpy.typing import NDArray

from llama_ckpt.judging.to_precision import cut_to_bfloat16, to_bfloat16, to_float16

__all__ = ["FORMATS"]

Array: TypeAlias = NDArray[Any]

FORMATS: Mapping[str, Callable[[Array], Array]] = {
    "bfloat16": to_bfloat16,
    "float16": to_float16,
    "bfloat16 by cutting, not rounding,": cut_to_bfloat16,
}
"""Each to how it is come to."""
