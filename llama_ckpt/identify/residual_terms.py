"""The terms that a residual sum may be made of: theirs where they were recorded, else the oracle's.

numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.record import Asked
from llama_ckpt.oracle import llama as oracle

__all__ = ["NAMES", "SUMS", "shown_in", "terms_of"]

Array: TypeAlias = NDArray[Any]

SUMS: Mapping[str, tuple[str, str]] = {"ffn_inp": ("in", "attn_out"), "out": ("ffn_inp", "ffn_out")}
"""The residual sums with their right terms."""

OTHERS: Mapping[str, tuple[str, ...]] = {
    "ffn_inp": ("attn_norm", "attn_context", "q", "v", "embd"),
    "out": ("in", "attn_out", "ffn_norm", "attn_norm", "ffn_swiglu", "embd"),
}
"""Tensors that may have been summed by mistake."""

NAMES = {"in": "the block's input", "embd": "the embedding"}


def shown_in(asked: Asked) -> dict[str, Array]:
    """The oracle's own tensors of the block, by neutral name."""
    seen: dict[str, Array] = {}  # all of them: a call may name only some
    seen["out"] = oracle.block(**asked.given, tap=seen.__setitem__)
    return seen


def terms_of(asked: Asked, point: str, shown: Mapping[str, Array]) -> dict[str, Array]:
    """What may have been summed: theirs where it was recorded, else the oracle's; of the sum's shape."""
    shape = np.shape(asked.given["x"])
    found = {}
    for name in (*SUMS[point], *OTHERS[point]):
        array = np.asarray(asked.given["x"]) if name == "in" else asked.theirs(name)
        if name == "embd" and array is None:
            array = _embedded(asked)
        if array is None:
            array = shown.get(name)
        if array is not None and np.size(array) == np.prod(shape) and np.isfinite(array).all():
            found[name] = np.asarray(array, np.float64).reshape(shape)
    if "embd" in found and asked.block == 0:
        del found["embd"]  # it is the block's input
    return found


def _embedded(asked: Asked) -> Array | None:
    table = getattr(asked.around.weights, "token_embd", None)
    ids = asked.around.token_ids
    if table is None or len(ids) != len(asked.given["x"]):
        return None
    rows: Array = np.asarray(table)[np.asarray(ids)]
    return rows
