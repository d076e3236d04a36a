"""Checkpoint 2: the projections, and how any product reads its weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.misread_weights import (
    nibbles_interleaved,
    scale_of_next_block,
    zero_point_forgotten,
)
from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply, Patch, PatchedOracle
from llama_ckpt.judging.to_precision import to_tf32

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]


def projected(weights: Callable[[Array, Array, Array, int, int], tuple[Array, Array, Array]]) -> Patch:
    """Right projections with other weights: `weights(wq, wk, wv, n_heads, n_kv_heads)`."""

    def qkv(
        right: PatchedOracle,
        x: Any,
        wq: Any,
        wk: Any,
        wv: Any,
        *,
        n_heads: int,
        n_kv_heads: int,
        tap: Any = None,
    ) -> Any:
        given = weights(np.asarray(wq), np.asarray(wk), np.asarray(wv), n_heads, n_kv_heads)
        return right.qkv(x, *given, n_heads=n_heads, n_kv_heads=n_kv_heads)

    return qkv


def transposed(wq: Array, wk: Array, wv: Array, n_heads: int, n_kv_heads: int) -> tuple[Array, Array, Array]:
    """Only where a matrix is square: another shape complains."""
    if wq.shape[0] != wq.shape[1]:
        raise DoesNotApply
    return wq.T, wk, wv


def keys_for_values(
    wq: Array, wk: Array, wv: Array, n_heads: int, n_kv_heads: int
) -> tuple[Array, Array, Array]:
    return wq, wv, wk


def queries_for_keys(
    wq: Array, wk: Array, wv: Array, n_heads: int, n_kv_heads: int
) -> tuple[Array, Array, Array]:
    if wq.shape != wk.shape:
        raise DoesNotApply
    return wk, wq, wv


def parted(w: Array, heads: int) -> Array:
    """Rows 0, 2, 4, … of a head, then 1, 3, 5, …: Hugging Face's order."""
    return w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def interleaved(w: Array, heads: int) -> Array:
    """A head's rows from Hugging Face's order to GGUF's."""
    return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def reordered(
    q: Callable[[Array, int], Array] | None = None,
    k: Callable[[Array, int, int], Array] | None = None,
    v: Callable[[Array, int], Array] | None = None,
) -> Patch:
    """Rows in another order: of wq by n_heads, of wk by n_kv_heads and n_heads, of wv by n_kv_heads."""

    def weights(wq: Array, wk: Array, wv: Array, n_heads: int, n_kv_heads: int) -> tuple[Array, Array, Array]:
        return (
            q(wq, n_heads) if q else wq,
            k(wk, n_kv_heads, n_heads) if k else wk,
            v(wv, n_kv_heads) if v else wv,
        )

    return projected(weights)


def by_query_heads(wk: Array, n_kv_heads: int, n_heads: int) -> Array:
    if n_kv_heads == n_heads or len(wk) // n_heads % 2:
        raise DoesNotApply
    return interleaved(parted(wk, n_kv_heads), n_heads)


def back_by_query_heads(wk: Array, n_kv_heads: int, n_heads: int) -> Array:
    if n_kv_heads == n_heads or len(wk) // n_heads % 2:
        raise DoesNotApply
    return interleaved(parted(wk, n_heads), n_kv_heads)


def queries_scaled(
    wq: Array, wk: Array, wv: Array, n_heads: int, n_kv_heads: int
) -> tuple[Array, Array, Array]:
    return wq / np.sqrt(len(wq) // n_heads), wk, wv


def heads_reversed(
    wq: Array, wk: Array, wv: Array, n_heads: int, n_kv_heads: int
) -> tuple[Array, Array, Array]:
    if n_kv_heads < 2:
        raise DoesNotApply
    k, v = (w.reshape(n_kv_heads, -1, w.shape[1])[::-1].reshape(w.shape) for w in (wk, wv))
    return wq, k, v


def heads_last(
    right: PatchedOracle, x: Any, wq: Any, wk: Any, wv: Any, *, n_heads: int, n_kv_heads: int, tap: Any = None
) -> Any:
    """[head_dim, n_heads] instead of [n_heads, head_dim]."""
    found = right.qkv(x, wq, wk, wv, n_heads=n_heads, n_kv_heads=n_kv_heads)
    return tuple(a.reshape(len(a), a.shape[2], a.shape[1]).swapaxes(1, 2) for a in found)


def bias_added(
    right: PatchedOracle, x: Any, wq: Any, wk: Any, wv: Any, *, n_heads: int, n_kv_heads: int, tap: Any = None
) -> Any:
    """A buffer that was never cleared, or Qwen's bias: here the first token's own projection."""
    q, k, v = right.qkv(x, wq, wk, wv, n_heads=n_heads, n_kv_heads=n_kv_heads)
    return q + q[:1], k + k[:1], v + v[:1]


def product(x: Callable[[Array], Array] | None = None, w: Callable[[Array], Array] | None = None) -> Patch:
    """Every product with a weight, with the vector or the weight changed first."""

    def linear(right: PatchedOracle, given: Array, weight: Any) -> Array:
        vector = x(given) if x else given
        matrix = w(np.asarray(weight)) if w else weight
        result: Array = right.linear(vector, matrix)
        return result

    return linear


def tf32(right: PatchedOracle, x: Array, w: Any) -> Array:
    result: Array = right.linear(to_tf32(x), to_tf32(np.asarray(w)))
    return result


def eight_bits(x: Array) -> Array:
    """Blocks of 32 rounded to 8-bit integers times a float16 scale, as llama.cpp does to activations."""
    if x.shape[-1] % 32:
        raise DoesNotApply
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    numbers = np.rint(blocks / np.where(scale > 0, scale, 1.0))
    rounded: Array = numbers * scale.astype(np.float16).astype(x.dtype)
    return rounded.reshape(x.shape)


def bug(name: str, sentence: str, patch: Patch, function: str = "qkv") -> Bug:
    return Bug(name, sentence, "2", function, patch)


BUGS = (
    bug("qkv-wq-transposed", "the query projection is transposed", projected(transposed)),
    bug("qkv-keys-for-values", "keys and values are swapped", projected(keys_for_values)),
    bug("qkv-queries-for-keys", "queries and keys are swapped", projected(queries_for_keys)),
    bug(
        "qkv-half-split-rows",
        "the rows of wq and wk are in Hugging Face's order, for RoPE pairs (i, i+d/2)",
        reordered(parted, lambda wk, n, _: parted(wk, n)),
    ),
    bug(
        "qkv-half-split-queries",
        "the rows of wq are in Hugging Face's order, those of wk are not",
        reordered(q=parted),
    ),
    bug(
        "qkv-half-split-keys",
        "the rows of wk are in Hugging Face's order, those of wq are not",
        reordered(k=lambda wk, n, _: parted(wk, n)),
    ),
    bug(
        "qkv-half-split-all",
        "the rows of wq, wk and wv are in Hugging Face's order, for RoPE pairs (i, i+d/2)",
        reordered(parted, lambda wk, n, _: parted(wk, n), parted),
    ),
    bug(
        "qkv-rows-twice",
        "the rows of wq and wk are permuted from Hugging Face's order to GGUF's a second time",
        reordered(interleaved, lambda wk, n, _: interleaved(wk, n)),
    ),
    bug(
        "qkv-keys-by-query-heads",
        "wk's rows are brought to GGUF's order as if there were as many key heads as query heads",
        reordered(k=by_query_heads),
    ),
    bug(
        "qkv-keys-back-by-query-heads",
        "wk's rows are brought to Hugging Face's order as if there were as many key heads as query heads",
        reordered(k=back_by_query_heads),
    ),
    bug("qkv-queries-scaled", "the queries are already divided by sqrt(head_dim)", projected(queries_scaled)),
    bug("qkv-kv-heads-reversed", "the key and value heads are in reverse order", projected(heads_reversed)),
    bug(
        "qkv-heads-last", "heads are split as [head_dim, n_heads] instead of [n_heads, head_dim]", heads_last
    ),
    bug("qkv-first-token-added", "each token's projections have the first token's added", bias_added),
    bug("product-tf32", "products are rounded to TF32", tf32, "linear"),
    bug(
        "product-8-bit",
        "vectors are rounded to 8-bit blocks before each product",
        product(x=eight_bits),
        "linear",
    ),
    bug(
        "weight-nibbles-interleaved",
        "each block of 32 weights is read as if nibbles (2i, 2i+1) shared a byte instead of (i, i+16)",
        product(w=nibbles_interleaved),
        "linear",
    ),
    bug(
        "weight-scale-of-next",
        "each block of 32 weights takes the next block's scale",
        product(w=scale_of_next_block),
        "linear",
    ),
    bug(
        "weight-zero-point",
        "each block of 32 weights is read as Q4_0 without subtracting 8",
        product(w=zero_point_forgotten),
        "linear",
    ),
)
