"""Arithmetics that are as right as a declared one, where a library chooses what a product is made in.

cuBLAS takes TF32 for some sizes and float32 for others once TF32 is allowed; torch's attention, where it is
not fused, multiplies queries and keys by the root of the scale before their product. Which it is does not
follow from what a program declares, and both are right. numpy only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import product
from typing import Any, Final

from llama_ckpt.arithmetic.record import Arithmetic

__all__ = ["choices"]

_PLAIN: Final[dict[str, Any]] = {"*": "float32"}
_OF_PRODUCTS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"weights": _PLAIN, "activations": _PLAIN, "stream_activations": {}},
)
_OF_SCORES: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"scaling": "queries and keys"},
    {"queries": "float32", "keys": "float32"},
)
_OF_MIXING: Final[tuple[dict[str, Any], ...]] = ({}, {"mixing": "float32", "values": "float32"})


def choices(arithmetic: Arithmetic, parts: Collection[str]) -> Iterator[Arithmetic]:
    """The others that are as right in a step.

    Args:
        parts: of the arithmetic that the step is made of, "products" and "attention" (`parts.PARTS`).
    """
    if not arithmetic.or_float32:
        return
    of_products = _OF_PRODUCTS if "products" in parts else ({},)
    of_attention = tuple(product(_OF_SCORES, _OF_MIXING)) if "attention" in parts else (({}, {}),)
    for lines, (scores, mixing) in product(of_products, of_attention):
        if changed := {**lines, **scores, **mixing}:
            yield replace(arithmetic, **changed)
