"""The facts about a wrong tensor that nothing explains: what is off, completely, and by how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llama_ckpt.identify.places import elements_off, place_of
from llama_ckpt.identify.record import Asked

__all__ = ["facts_of"]

RULED_OUT = {
    "rope": "no positions, frequencies, pairs, gain or rounding of a rotation give it",
    "rms_norm": "no weight, divisor, input or rounding of a norm gives it",
    "attention": "no heads, keys, scale, sum or rounding of an attention give it",
    "qkv": "no rows or columns of the model's matrices give it",
    "swiglu": "no rows or columns of the model's matrices and no known curve give it",
}
"""What was tried, by the function that was called."""


def facts_of(asked: Asked) -> str:
    """One line; empty where the tensor has another shape, which says itself."""
    first = asked.first
    x, o = np.asarray(first.x), np.asarray(first.o)
    if x.shape != o.shape or x.dtype.kind in "iub" or not x.size:
        return ""
    off = elements_off(x, o, first.limit, first.mask)
    if not off.any():
        return "no single element is far off: a small error in many of them"
    place = place_of(off, first.name)
    lost = int(np.sum(~np.isfinite(x)))
    if len(o) == 2 and place.rows == ((1, 1),):
        place = replace(place, rows=None)  # of two tokens the first is hardly moved: no finding
    where = place.said() or "all rows and features"
    most = f"{lost} of {x.size} are not finite" if lost else f"by {_size(asked):.1e} of their size there"
    share = 100 * off.mean()
    tried = RULED_OUT.get(first.case.function)
    return f"off are {where} ({share:.3g}% of the elements), {most}" + (f"; {tried}" if tried else "")


def _size(asked: Asked) -> float:
    """The error of the elements that are off, over their size."""
    x, o = asked.x, asked.o
    off = elements_off(x, o, asked.first.limit, asked.first.mask)
    size = float(np.linalg.norm(o[off]))
    error = float(np.linalg.norm(x[off] - o[off]))
    return error / size if size else error
