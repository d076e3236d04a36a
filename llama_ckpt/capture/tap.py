"""The evaluation callback: takes llama.cpp's tensors as they are computed, under neutral names.

llama.cpp reuses names (`Qcur-0` is a product with a weight, its reshape and its rotation), so a
point is known by name and op together. It reuses memory too: values are copied at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.capture.library import Library
from llama_ckpt.capture.request import Request
from llama_ckpt.capture.tensors import TensorReader
from llama_ckpt.errors import ReferenceError
from llama_ckpt.points import (
    ALL_POINTS,
    MODEL_POINTS,
    Point,
    block_point,
    points_in_block,
    split_name,
)

__all__ = ["PointTap", "points_of"]

Float32 = NDArray[np.float32]


class PointTap:
    """Collects the points of one pass through the model.

    Attributes:
        callback: to be put in `llama_context_params.cb_eval`.
        recording: while False, llama.cpp computes without being asked for anything.
    """

    def __init__(self, library: Library, n_layers: int, blocks: Iterable[int], request: Request) -> None:
        self._reader = TensorReader(library)
        self._request = request
        self._wanted = _names_of_points(n_layers, frozenset(blocks), request)
        self._seen: dict[str, Float32] = {}
        self._error: Exception | None = None
        self.recording = False
        # Kept here, because ctypes frees a callback that nobody holds.
        self.callback = library.api.ggml_backend_sched_eval_callback(self._evaluate)

    def clear(self) -> None:
        """Forget what was seen, before another pass."""
        self._seen = {}

    def points(self, n_keys: int | None) -> dict[str, Float32]:
        """The recorded points: first axis = token, the first `n_keys` keys, or up to the last that is seen.

        Raises:
            ReferenceError: a point did not occur, occurred twice, or could not be read.
        """
        if self._error is not None:
            raise self._error
        if missing := [key for key, name in self._wanted.items() if name not in self._seen]:
            raise ReferenceError(
                "llama.cpp did not compute some tensors of a Llama",
                got=f"{len(self._seen)} of {len(self._wanted)}",
                wanted=", ".join(f"{name} from {op}" for name, op in missing[:4]),
            )
        seen = _parted(self._seen, self._request)
        n_keys = n_keys or _n_seen(seen)
        shaped = {name: _shaped(name, array, n_keys) for name, array in seen.items()}
        _split_heads(shaped)
        return shaped

    def _evaluate(self, pointer: int, ask: bool, _: object) -> bool:
        # An exception would be lost in C, and False would silently end the pass: note it, go on.
        try:
            return self._take(pointer, ask)
        except Exception as error:
            self._error = self._error or error
            return not ask

    def _take(self, pointer: int, ask: bool) -> bool:
        if not self.recording:
            return False
        name = self._wanted.get(self._reader.key(pointer))
        if name is None or ask:
            return name is not None
        if name in self._seen:
            raise ReferenceError(f"llama.cpp computed {name} more than once in one pass")
        self._seen[name] = self._reader.values(pointer)
        return True


def points_of(*, fused: bool, experts: bool = False) -> tuple[Point, ...]:
    """The points of a block that llama.cpp shows; a fused attention has neither scores nor probabilities."""
    return tuple(
        point
        for point in points_in_block(experts=experts)
        if not (fused and point.name in ("attn_scores", "attn_probs"))
    )


_SUMS = {
    "bq": ("q", "Qcur"),
    "bk": ("k", "Kcur"),
    "bv": ("v", "Vcur"),
    "bo": ("attn_out", "attn_out"),
    "b_gate": ("ffn_gate", "ffn_gate_b"),
    "b_up": ("ffn_up", "ffn_up_b"),
    "b_down": ("ffn_out", "ffn_out"),
}
"""The point that a bias belongs to, and llama.cpp's name of the sum."""

_ALL_THREE = "qkv"


def _names_of_points(n_layers: int, blocks: frozenset[int], request: Request) -> dict[tuple[str, str], str]:
    """llama.cpp's name and op of every tensor to record, and its full neutral name."""
    wanted = {(point.llama_cpp, point.op): point.name for point in MODEL_POINTS}
    for block in range(n_layers):
        for point, (name, op) in _names_in_block(block, request).items():
            if block in blocks or point == "out":
                wanted[f"{name}-{block}", op] = block_point(block, point)
    return wanted


def _names_in_block(block: int, request: Request) -> dict[str, tuple[str, str]]:
    """Of each point llama.cpp's name without the block's number, and op."""
    points = points_of(fused=request.flash_attention, experts=request.experts > 0)
    named = {point.name: (point.llama_cpp, point.op) for point in points}
    biases = [bias for bias in request.biases if (block, bias) not in request.unbiased]
    if request.experts:
        named["ffn_out"] = ("ffn_moe_out", "ADD" if request.experts > 1 else "CONT")
    if request.flash_attention:
        named["attn_context"] = (named["attn_context"][0], "RESHAPE")
    for bias in biases:
        point, name = _SUMS[bias]
        named[point] = (name, "ADD")
    if request.fused_qkv:
        named = {point: key for point, key in named.items() if point not in ("q", "k", "v")}
        named[_ALL_THREE] = ("wqkv_b", "ADD") if "bq" in biases else ("wqkv", "MUL_MAT")
    return named


def _parted(seen: Mapping[str, Float32], request: Request) -> dict[str, Float32]:
    """The points, the product of Q, K and V together cut into three."""
    q, kv = request.qkv_widths
    found: dict[str, Float32] = {}
    for name, array in seen.items():
        block, point = split_name(name)
        if block is None or point != _ALL_THREE:
            found[name] = array
            continue
        for part, columns in zip(("q", "k", "v"), np.split(array, (q, q + kv), axis=-1), strict=True):
            found[block_point(block, part)] = np.ascontiguousarray(columns)
    return found


def _n_seen(seen: Mapping[str, Float32]) -> int:
    """How many cells some row sees in some block; llama.cpp pads the cache."""
    probs = [array for name, array in seen.items() if split_name(name)[1] == "attn_probs"]
    return max((int(np.flatnonzero(array.any(axis=(0, 1, 2)))[-1]) + 1 for array in probs), default=1)


def _shaped(name: str, array: Float32, n_keys: int) -> Float32:
    """From ggml's four axes to the point's own; a product with a weight still has its heads joined."""
    point = ALL_POINTS[split_name(name)[1]]
    if "key" in point.axes:
        # [1, head, token, cell]: heads come before tokens, and unused cells pad the keys. Where the
        # cache was empty, cell i holds token i.
        return np.ascontiguousarray(array[0].transpose(1, 0, 2)[:, :, :n_keys])
    n_axes = 2 if point.op == "MUL_MAT" else len(point.axes)
    return array.reshape(array.shape[4 - n_axes :])


def _split_heads(points: dict[str, Float32]) -> None:
    """Give q, k and v before RoPE the head axis that q and k have after it."""
    for name in points:
        block, point = split_name(name)
        if block is not None and point in ("q", "k", "v"):
            rotated = block_point(block, "q_rope" if point == "q" else "k_rope")
            points[name] = points[name].reshape(points[rotated].shape)
