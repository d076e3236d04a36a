"""Where in a tensor something is off: rows, heads, features, keys and columns, as complete ranges.

A place is kept whole, however many parts it has; only its sentence may be shortened, with a count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.matching import leaves_at_most
from llama_ckpt.judging.metrics import element_errors
from llama_ckpt.listing import which
from llama_ckpt.points import ALL_POINTS, split_name

__all__ = ["NOWHERE", "Place", "Ranges", "elements_off", "place_of", "ranges"]

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Numbers as runs, each with its first and its last: ((3, 3), (7, 9)) is 3, 7, 8 and 9."""

AXES = {
    "token": ("rows", "token"),
    "head": ("heads", "head"),
    "kv_head": ("heads", "KV head"),
    "head_dim": ("features", "head feature"),
    "width": ("features", "feature"),
    "q_width": ("features", "feature"),
    "ffn": ("features", "feature"),
    "vocab": ("features", "vocabulary entry"),
    "key": ("keys", "key"),
    "expert": ("features", "expert"),
    "rank": ("heads", "rank of experts"),
}
"""An axis of a point, to the part of a place that it is, and what one of it is called."""


def ranges(numbers: Iterable[int]) -> Ranges:
    """The runs of these whole numbers, in order; a number that comes twice counts once."""
    chosen = np.unique(np.fromiter((int(one) for one in numbers), np.int64))
    if not len(chosen):
        return ()
    breaks = np.flatnonzero(np.diff(chosen) > 1)
    first, last = chosen[np.r_[0, breaks + 1]], chosen[np.r_[breaks, len(chosen) - 1]]
    return tuple((int(a), int(b)) for a, b in zip(first, last, strict=True))


@dataclass(frozen=True)
class Place:
    """A part of a tensor; None where an axis is not there or says nothing, as all of it is meant.

    Attributes:
        rows: tokens; heads; features: of a head or a row; keys: of scores and probabilities; all of
            the tensor on trial, each complete.
        columns: inputs of a product, columns of its matrix.
        sizes: how many there are of each that is named.
        nouns: what one of each is called.
    """

    rows: Ranges | None = None
    heads: Ranges | None = None
    features: Ranges | None = None
    keys: Ranges | None = None
    columns: Ranges | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    nouns: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Ranges]:
        """The parts that are named, in order."""
        named = {part: getattr(self, part) for part in ("rows", "heads", "features", "keys", "columns")}
        return {part: one for part, one in named.items() if one is not None}

    def said(self) -> str:
        """In words: "tokens 3 to 7, head 2"; empty where all of the tensor is meant."""
        return ", ".join(self._part_said(part, one) for part, one in self.parts.items())

    def _part_said(self, part: str, runs: Ranges) -> str:
        noun = self.nouns.get(part, "token" if part == "rows" else part.removesuffix("s"))
        numbers = [n for first, last in runs for n in range(first, last + 1)]
        return which(noun, numbers, self.sizes.get(part, max(numbers, default=0) + 1)) if numbers else ""

    def to_json(self) -> dict[str, Any]:
        """Part to its ranges, `[[first, last], …]`."""
        return {part: [list(run) for run in one] for part, one in self.parts.items()}


NOWHERE = Place()
"""No part in particular."""


def elements_off(x: ArrayLike, o: ArrayLike, limit: Limit, mask: Mask | None = None) -> Mask:
    """Which elements are further off than rounding may put any one of them; another shape: all.

    Where it is known what each element is allowed, that counts.
    """
    trial, exact = np.asarray(x), np.asarray(o)
    if trial.shape != exact.shape:
        return np.ones(exact.shape, np.bool_)
    if exact.dtype.kind in "iub":
        return np.asarray(trial != exact)
    with np.errstate(all="ignore"):
        error = element_errors(trial, exact, mask).reshape(exact.shape)
        allowed: Any = max(limit.element_err, leaves_at_most(limit))
        if limit.elements is not None and limit.elements.size == exact.size:
            allowed = limit.elements.reshape(exact.shape)
        return np.asarray(~(error <= allowed))


def place_of(off: Mask, name: str) -> Place:
    """Where the marked elements of a point's tensor lie; axes that are off all along are not named."""
    axes = ALL_POINTS[split_name(name)[1]].axes if split_name(name)[1] in ALL_POINTS else ()
    if len(axes) != off.ndim or not off.any():
        return NOWHERE
    parts: dict[str, Any] = {}
    sizes, nouns = {}, {}
    for axis, called in enumerate(axes):
        part, noun = AXES[called]
        seen = np.flatnonzero(off.any(axis=tuple(i for i in range(off.ndim) if i != axis)))
        if len(seen) < off.shape[axis]:
            parts[part], sizes[part], nouns[part] = ranges(seen), off.shape[axis], noun
    return Place(**parts, sizes=sizes, nouns=nouns)
