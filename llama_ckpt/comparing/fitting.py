"""Putting somebody's array into the axes that a point has, and saying what had to be done for it.

Heads that lie flat and a batch of one say the same thing in other words: they are read as meant, with a
note. Axes in ggml's order, keys or a vocabulary that are padded, or a shape that fits nothing are findings:
what can be put right is put right and judged, but the dump fails. numpy only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.comparison import LintFinding
from llama_ckpt.points import ALL_POINTS, split_name
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["Fitted", "axis_sizes", "fit", "sizes_from_shapes"]

Array: TypeAlias = NDArray[Any]

MAP_HINT = "write it row-major with the token first, or say how it lies with --map"


@dataclass(frozen=True)
class Fitted:
    """An array after fitting.

    Attributes:
        array: with the point's axes; None where nothing fits.
        finding: what was wrong about it.
        note: what was read as meant.
    """

    array: Array | None
    finding: LintFinding | None = None
    note: str | None = None


def axis_sizes(config: LlamaConfig, n: int) -> dict[str, int]:
    """How long each axis of a point is, for `n` tokens of a model."""
    return {
        "token": n,
        "key": n,
        "width": config.width,
        "head": config.n_heads,
        "kv_head": config.n_kv_heads,
        "head_dim": config.head_dim,
        "q_width": config.q_width,
        "ffn": config.ffn,
        "expert": config.n_experts,
        "rank": config.n_experts_used,
        "vocab": config.vocab_size,
    }


def sizes_from_shapes(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The same, from the shapes of a reference dump's points by full name."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        point = split_name(name)[1]
        if point in ALL_POINTS:
            sizes |= dict(zip(ALL_POINTS[point].axes, shape, strict=True))
        elif point == "last_logits":  # all that a dump may hold of the logits
            sizes["vocab"] = shape[0]
    return sizes


def fit(name: str, x: Array, sizes: Mapping[str, int], expected: Callable[[], Array | None]) -> Fitted:
    """Fit `x` to the axes of the point `name`.

    Args:
        name: full neutral name.
        sizes: how long each axis is.
        expected: what the tensor should be, nearly; asked only where several readings are possible.
    """
    axes = ALL_POINTS[split_name(name)[1]].axes
    shape = tuple(sizes[axis] for axis in axes)
    if x.shape == shape:
        return Fitted(x)
    if tuple(size for size in x.shape if size != 1) == tuple(size for size in shape if size != 1):
        return Fitted(x.reshape(shape), note=f"shape {list(x.shape)} read as {list(shape)}: axes of one")
    lead = x.reshape(x.shape[1:]) if x.ndim > 1 and x.shape[0] == 1 else x
    if lead.ndim == 2 and lead.shape == (shape[0], math.prod(shape[1:])):
        return Fitted(x.reshape(shape), note=f"shape {list(x.shape)} read as {list(shape)}: heads lie flat")
    if padded := _padded(name, lead, shape, axes):
        return padded
    if sorted(lead.shape) == sorted(shape):
        return _reordered(name, lead, shape, axes, expected)
    return Fitted(None, _shape_finding(name, x, shape, axes))


def _padded(name: str, x: Array, shape: tuple[int, ...], axes: Sequence[str]) -> Fitted | None:
    """Keys up to the cache's size where the prompt's were asked for, logits of a padded vocabulary."""
    if x.ndim != len(shape) or x.shape[:-1] != shape[:-1] or x.shape[-1] <= shape[-1]:
        return None
    got, wanted = x.shape[-1], shape[-1]
    if axes[-1] == "key":
        message = f"{name} has {got} keys for {wanted} tokens: the cache's padding was recorded too"
        hint = "record the first keys only"
    elif axes[-1] == "vocab":
        message = f"{name} has {got} columns for a vocabulary of {wanted}: the head is padded"
        hint = "cut them off before a token is chosen: one that is not there must never be"
    else:
        return None
    return Fitted(x[..., :wanted], LintFinding("padded", name, message, hint))


def _reordered(
    name: str,
    x: Array,
    shape: tuple[int, ...],
    axes: Sequence[str],
    expected: Callable[[], Array | None],
) -> Fitted:
    """Every reading of the axes that gives the shape; what is nearest to what is expected counts."""
    readings: list[tuple[str, Array]] = []
    if x.shape == shape[::-1]:
        readings.append(("ne", x.reshape(shape)))
    for order in itertools.permutations(range(len(shape))):
        if order != tuple(range(len(shape))) and tuple(x.shape[i] for i in order) == shape:
            stored = [""] * len(shape)
            for place, source in enumerate(order):
                stored[source] = axes[place]
            readings.append((", ".join(stored), x.transpose(order)))
    wanted = expected()
    if wanted is not None and len(readings) > 1:
        readings.sort(key=lambda reading: _distance(reading[1], wanted))
    how, array = readings[0]
    if how == "ne":
        message = f"{name}: shape {list(x.shape)} in ggml's order, fastest axis first, over row-major bytes"
    else:
        message = f"{name}: axes are [{how}], wanted [{', '.join(axes)}]"
        message += ": ggml's order" if x.shape == shape[::-1] else ""
    return Fitted(array, LintFinding("axis_order", name, message, MAP_HINT))


def _distance(x: Array, wanted: Array) -> float:
    return float(np.linalg.norm(np.nan_to_num(x.astype(np.float64)) - wanted))


def _shape_finding(name: str, x: Array, shape: tuple[int, ...], axes: Sequence[str]) -> LintFinding:
    message = f"{name}: shape {list(x.shape)}, wanted {list(shape)} [{', '.join(axes)}]"
    if x.ndim == len(shape) and x.shape[1:] == shape[1:]:
        message += f": {x.shape[0]} tokens for {shape[0]}"
    elif axes == ("token", "rank") and x.ndim == len(shape) and len(x) == shape[0]:
        message += f": {x.shape[-1]} experts a token, the model has {shape[-1]}"
    elif axes[-1] == "vocab" and x.ndim == len(shape) and x.shape[-1] < shape[-1]:
        message += f": the vocabulary is cut, {shape[-1] - x.shape[-1]} tokens have no logit"
    return LintFinding("shape", name, message, MAP_HINT)
