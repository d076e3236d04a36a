"""Steps of the oracle done otherwise and as rightly: fused, split, by other formulas; in float32."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.patched_oracle import PatchedOracle

__all__ = [
    "float32",
    "rope",
    "split_attention",
    "fused_attention",
    "scaled_queries",
    "padded_keys",
    "powers_of_two",
    "large_negative_mask",
    "other_exp",
    "sigmoid_by_tanh",
    "reciprocal_root",
    "complex_rope",
    "fused_qkv",
]

Array: TypeAlias = NDArray[Any]


def float32(right: PatchedOracle, x: Any) -> Array:
    """Whatever it is, as float32."""
    return np.asarray(x, dtype=np.float32)


def rope(right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None) -> Any:
    """Angles in float64, as everywhere; then float32."""
    angle = np.asarray(positions, np.float64)[:, None] * np.asarray(frequencies, np.float64)
    cos, sin = (f(angle).astype(np.float32)[:, None] for f in (np.cos, np.sin))

    def turn(x: Array) -> Array:
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)

    return turn(float32(right, q)), turn(float32(right, k))


def split_attention(
    right: PatchedOracle,
    q: Any,
    k: Any,
    v: Any,
    wo: Any,
    *,
    positions: Any,
    sequence_ids: Any = None,
    tap: Any = None,
) -> Array:
    """Keys three at a time, with a running maximum and sum, as FlashAttention; shows the context only."""
    queries, keys, values = (float32(right, x).transpose(1, 0, 2) for x in (q, k, v))
    n_heads, n, head_dim = queries.shape
    group = n_heads // len(keys)
    keys, values = np.repeat(keys, group, axis=0), np.repeat(values, group, axis=0)
    visible = right.visible(positions, sequence_ids)
    largest = np.full((n_heads, n, 1), -1e30, np.float32)
    total, context = np.zeros_like(largest), np.zeros_like(queries)
    for start in range(0, n, 3):
        part = slice(start, start + 3)
        scores = queries @ keys[:, part].transpose(0, 2, 1) * np.float32(head_dim**-0.5)
        scores = np.where(visible[:, part], scores, np.float32(-np.inf))
        before, largest = largest, np.maximum(largest, scores.max(axis=-1, keepdims=True))
        e, kept = np.exp(scores - largest), np.exp(before - largest)
        total = total * kept + e.sum(axis=-1, keepdims=True)
        context = context * kept + e @ values[:, part]
    joined = (context / total).transpose(1, 0, 2).reshape(n, n_heads * head_dim)
    if tap:
        tap("attn_context", joined)
    out: Array = right.linear(joined, wo)
    return out


def fused_attention(right: PatchedOracle, *args: Any, tap: Any = None, **options: Any) -> Array:
    """Nothing inside is shown, as by a fused kernel."""
    out: Array = right.attention(*args, **options)
    return out


def scaled_queries(
    right: PatchedOracle,
    q: Any,
    k: Any,
    v: Any,
    wo: Any,
    *,
    positions: Any,
    sequence_ids: Any = None,
    tap: Any = None,
) -> Array:
    """The scale is multiplied into the queries, before their products with keys."""
    n, n_heads, head_dim = np.asarray(q).shape
    queries, keys, values = (float32(right, x).transpose(1, 0, 2) for x in (q, k, v))
    keys, values = (np.repeat(x, n_heads // len(x), axis=0) for x in (keys, values))
    root = np.float32(head_dim**0.5)
    scores = (queries / root) @ keys.transpose(0, 2, 1)
    probs = right.normalized_exp(
        np.where(right.visible(positions, sequence_ids), scores, np.float32(-np.inf))
    )
    context = (probs @ values).transpose(1, 0, 2).reshape(n, n_heads * head_dim)
    for point, array in (("attn_scores", scores * root), ("attn_probs", probs)):
        if tap:
            tap(point, array.transpose(1, 0, 2))
    if tap:
        tap("attn_context", context)
    out: Array = right.linear(context, wo)
    return out


def padded_keys(
    right: PatchedOracle,
    q: Any,
    k: Any,
    v: Any,
    wo: Any,
    *,
    positions: Any,
    sequence_ids: Any = None,
    tap: Any = None,
) -> Array:
    """A cache with free slots behind the keys, hidden by the mask; tapped tensors are trimmed."""
    at = np.asarray(positions)
    n, free = len(at), 5
    later = np.concatenate([at, np.full(free, at.max() + 1)])
    q, k, v = (
        np.concatenate([float32(right, x), np.ones((free, *x.shape[1:]), np.float32)])
        for x in map(np.asarray, (q, k, v))
    )

    def trimmed(point: str, array: Array) -> None:
        if tap:
            tap(point, array[:n, :, :n] if array.ndim == 3 else array[:n])

    same = None if sequence_ids is None else np.concatenate([sequence_ids, np.full(free, -1)])
    out: Array = right.attention(q, k, v, wo, positions=later, sequence_ids=same, tap=trimmed)
    return out[:n]


def powers_of_two(right: PatchedOracle, x: Array) -> Array:
    """exp(x) as 2^(x log2(e)), as kernels for GPUs compute it."""
    e = np.exp2((x - x.max(axis=-1, keepdims=True)) * np.float32(math.log2(math.e)))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def large_negative_mask(right: PatchedOracle, x: Array) -> Array:
    """-10,000 stands for minus infinity: exp gives the same 0."""
    probs: Array = right.normalized_exp(np.where(np.isneginf(x), x.dtype.type(-10000), x))
    return probs


def other_exp(right: PatchedOracle, x: Array) -> Array:
    """The C library's exp, one number at a time, rounded once."""
    exp = np.vectorize(math.exp, otypes=[np.float32])
    e = exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def sigmoid_by_tanh(right: PatchedOracle, a: Array) -> Array:
    """sigmoid(a) as (1 + tanh(a / 2)) / 2."""
    return np.asarray(np.float32(0.5) * (1 + np.tanh(a * np.float32(0.5))))


def reciprocal_root(right: PatchedOracle, x: Any, weight: Any, *, eps: float, tap: Any = None) -> Array:
    """x times (weight times 1/root): two products where others divide."""
    rows = float32(right, x)
    inverse = 1 / np.sqrt(
        np.einsum("ni,ni->n", rows, rows)[:, None] / np.float32(rows.shape[-1]) + np.float32(eps)
    )
    return np.asarray(rows * (float32(right, weight) * inverse))


def complex_rope(
    right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None
) -> Any:
    """Pairs as complex numbers, multiplied by e^(i angle)."""
    turn = np.exp(1j * np.asarray(positions)[:, None] * np.asarray(frequencies)).astype(np.complex64)[:, None]
    turned = (np.ascontiguousarray(float32(right, x)).view(np.complex64) * turn for x in (q, k))
    return tuple(x.view(np.float32) for x in turned)


def fused_qkv(
    right: PatchedOracle, x: Any, wq: Any, wk: Any, wv: Any, *, n_heads: int, n_kv_heads: int, tap: Any = None
) -> Any:
    """One product with the three matrices on top of each other, then split."""
    parts = [float32(right, w) for w in (wq, wk, wv)]
    both = right.linear(float32(right, x), np.concatenate(parts))
    split = np.split(both, np.cumsum([len(w) for w in parts])[:-1], axis=1)
    heads = (n_heads, n_kv_heads, n_kv_heads)
    return tuple(a.reshape(len(a), h, -1) for a, h in zip(split, heads, strict=True))
