"""Llama in numpy float64: what every layer and every reference is measured against.

One function a checkpoint, written from the formulas of the papers and for a reader; nothing here
is fast. Each has the name and the argument names of the layer that it judges, so that one call can
be made of both. Inputs of any dtype are widened to float64 first; nothing is ever rounded back.

    Llama     Touvron et al. 2023, https://arxiv.org/abs/2302.13971 and 2307.09288
    RMSNorm   Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467
    RoPE      Su et al. 2021, https://arxiv.org/abs/2104.09864
    SwiGLU    Shazeer 2020, https://arxiv.org/abs/2002.05202
    GQA       Ainslie et al. 2023, https://arxiv.org/abs/2305.13245
    sampling  the order and the formulas of llama.cpp's sampler chain

Axes: `n` tokens come first and are flat; a weight is `[out, in]`, as a GGUF file stores it.

`weights` is any record with the attributes named in `block` and `logits`; its matrices are arrays, or
whatever implements numpy's `__array_ufunc__` for `matmul`. Where a function takes
`tap`, it calls `tap(point, array)` for what it computes on the way, not for what it returns. The
oracle imports numpy and nothing of ours: code shared with a layer would share the layer's mistakes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.oracle.c00_products import (
    Array,
    Tap,
    _biased,
    _float64,
    _ignore,
    _linear,
    _normalized_exp,
    _sigmoid,
)
from llama_ckpt.oracle.c01b_rope import rope_frequencies, rope_magnitude
from llama_ckpt.oracle.c06b_experts import routed, weighted_sum
from llama_ckpt.oracle.c09_choosing import argmax, last_logits, softmax

__all__ = [
    "argmax",
    "attention",
    "block",
    "embed",
    "experts",
    "feed_forward",
    "last_logits",
    "logits",
    "output_logits",
    "qkv",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "rope_magnitude",
    "softmax",
    "swiglu",
]


def embed(token_ids: ArrayLike, weight: ArrayLike, tap: Tap | None = None) -> Array:
    """Look up a row of `weight [vocab, width]` for each of `token_ids [n]` -> `[n, width]`."""
    return _float64(np.asarray(weight)[np.asarray(token_ids, dtype=np.int64)])


def rms_norm(x: ArrayLike, weight: ArrayLike, *, eps: float, tap: Tap | None = None) -> Array:
    """Scale each row of `x [n, width]` to a root mean square of one, then by `weight [width]`.

    y = x / sqrt(mean(x^2) + eps) * weight, with eps inside the root and no mean subtracted.
    """
    rows = _float64(x)
    mean_square = np.mean(rows * rows, axis=-1, keepdims=True)  # [n, 1]
    normed: Array = rows / np.sqrt(mean_square + eps)
    return normed * _float64(weight)


def rope(
    q: ArrayLike,
    k: ArrayLike,
    positions: ArrayLike,
    frequencies: ArrayLike,
    *,
    magnitude: float = 1.0,
    tap: Tap | None = None,
) -> tuple[Array, Array]:
    """Turn each pair of `q [n, n_heads, head_dim]` and `k [n, n_kv_heads, head_dim]` by its angle.

    Pair i is the neighbours (2i, 2i+1) of a head: in a GGUF file the rows of wq and wk are ordered
    for that. Its angle is `positions[n] * frequencies[i]`; the value vectors are never turned. What is
    turned is multiplied by `magnitude`.
    """
    cos, sin = _cos_and_sin(positions, frequencies)
    return _turned(_float64(q), cos, sin) * magnitude, _turned(_float64(k), cos, sin) * magnitude


def _cos_and_sin(positions: ArrayLike, frequencies: ArrayLike) -> tuple[Array, Array]:
    """Of every pair's angle, `[n, 1, head_dim / 2]`: the same for every head."""
    angle = _float64(positions)[:, None] * _float64(frequencies)
    return np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]


def _turned(x: Array, cos: Array, sin: Array) -> Array:
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = np.empty_like(x)
    turned[..., 0::2] = even * cos - odd * sin
    turned[..., 1::2] = even * sin + odd * cos
    return turned


def qkv(
    x: ArrayLike,
    wq: ArrayLike,
    wk: ArrayLike,
    wv: ArrayLike,
    *,
    n_heads: int,
    n_kv_heads: int,
    bq: ArrayLike | None = None,
    bk: ArrayLike | None = None,
    bv: ArrayLike | None = None,
    tap: Tap | None = None,
) -> tuple[Array, Array, Array]:
    """Project `x [n, width]` to q `[n, n_heads, head_dim]`, k and v `[n, n_kv_heads, head_dim]`."""
    x = _float64(x)
    n = len(x)
    q = _biased(_linear(x, wq), bq).reshape(n, n_heads, -1)  # heads are contiguous runs of wq's rows
    k = _biased(_linear(x, wk), bk).reshape(n, n_kv_heads, -1)
    v = _biased(_linear(x, wv), bv).reshape(n, n_kv_heads, -1)
    return q, k, v


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    wo: ArrayLike,
    *,
    positions: ArrayLike,
    sequence_ids: ArrayLike | None = None,
    bo: ArrayLike | None = None,
    tap: Tap | None = None,
) -> Array:
    """Causal attention with grouped heads: softmax(q k^T / sqrt(head_dim)) v, then wo -> `[n, width]`.

    A token sees the tokens of its own sequence whose position is not later than its own. Query head
    h reads key and value head h // (n_heads / n_kv_heads).
    Taps: `attn_scores` `[n, n_heads, n]` (q k^T, neither scaled nor masked), `attn_probs` (same
    shape, 0 where masked), `attn_context` `[n, n_heads * head_dim]`.
    """
    tap = tap or _ignore
    q, k, v = _float64(q), _float64(k), _float64(v)
    n, n_heads, head_dim = q.shape
    group = n_heads // k.shape[1]
    queries = q.transpose(1, 0, 2)  # [n_heads, n, head_dim]
    keys = np.repeat(k, group, axis=1).transpose(1, 0, 2)  # [n_heads, n, head_dim]
    values = np.repeat(v, group, axis=1).transpose(1, 0, 2)

    scores = _scores(queries, keys)
    tap("attn_scores", scores.transpose(1, 0, 2))

    scaled = np.where(_visible(positions, sequence_ids), _scaled(scores, head_dim), -np.inf)
    probs = _probabilities(scaled)
    tap("attn_probs", probs.transpose(1, 0, 2))

    context = _mixed(probs, values).transpose(1, 0, 2).reshape(n, n_heads * head_dim)
    tap("attn_context", context)
    return _biased(_to_stream(context, wo), bo)


def _scores(queries: Array, keys: Array) -> Array:
    return queries @ keys.swapaxes(-1, -2)  # [n_heads, query, key]


def _scaled(scores: Array, head_dim: int) -> Array:
    scaled: Array = scores / np.sqrt(head_dim)
    return scaled


def _probabilities(scaled: Array) -> Array:
    return _normalized_exp(scaled)


def _mixed(probs: Array, values: Array) -> Array:
    return probs @ values  # [n_heads, query, head_dim]


def _visible(positions: ArrayLike, sequence_ids: ArrayLike | None) -> NDArray[np.bool_]:
    """`[query, key]`: True where the query may look at the key."""
    position = np.asarray(positions, dtype=np.int64)
    not_later: NDArray[np.bool_] = position[None, :] <= position[:, None]
    if sequence_ids is None:
        return not_later
    sequence = np.asarray(sequence_ids, dtype=np.int64)
    same: NDArray[np.bool_] = sequence[None, :] == sequence[:, None]
    return not_later & same


def swiglu(
    x: ArrayLike,
    w_gate: ArrayLike,
    w_up: ArrayLike,
    w_down: ArrayLike,
    tap: Tap | None = None,
    *,
    b_gate: ArrayLike | None = None,
    b_up: ArrayLike | None = None,
    b_down: ArrayLike | None = None,
) -> Array:
    """w_down (silu(w_gate x) * (w_up x)) for `x [n, width]`, with silu(a) = a * sigmoid(a).

    Taps: `ffn_gate` (before silu), `ffn_up`, `ffn_swiglu` (their product after silu), `[n, ffn]`.
    """
    tap = tap or _ignore
    x = _float64(x)
    gate = _biased(_linear(x, w_gate), b_gate)
    tap("ffn_gate", gate)
    up = _biased(_linear(x, w_up), b_up)
    tap("ffn_up", up)
    product = _gated(gate, up)
    tap("ffn_swiglu", product)
    return _biased(_to_stream(product, w_down), b_down)


def _gated(gate: Array, up: Array) -> Array:
    return gate * _sigmoid(gate) * up


def experts(
    x: ArrayLike,
    w_router: ArrayLike,
    w_gate: Any,
    w_up: Any,
    w_down: Any,
    *,
    n_used: int,
    tap: Tap | None = None,
) -> Array:
    """A mixture of experts: each token of `x [n, width]` by its `n_used` likeliest, weighted and added.

    `w_router [n_experts, width]` says which; the others have all experts' matrices under one another, as
    `[n_experts * ffn, width]` and `[n_experts * width, ffn]`.
    Taps: `ffn_router` `[n, n_experts]`, `ffn_chosen` and `ffn_weights` `[n, n_used]`, the likeliest first,
    and `ffn_expert_out` `[n, n_used, width]`, not weighted yet.
    """
    tap = tap or _ignore
    x = _float64(x)
    router = _linear(x, w_router)
    tap("ffn_router", router)
    chosen, weights = routed(router, n_used)
    tap("ffn_chosen", chosen)
    tap("ffn_weights", weights)
    out = _by_experts(x, chosen, w_gate, w_up, w_down, router.shape[1])
    tap("ffn_expert_out", out)
    return weighted_sum(out, weights)


def _by_experts(x: Array, chosen: Any, w_gate: Any, w_up: Any, w_down: Any, n_experts: int) -> Array:
    """What each token's chosen experts make of it, `[n, n_used, width]`."""
    ffn, width = w_gate.shape[0] // n_experts, w_down.shape[0] // n_experts
    out = np.zeros((*chosen.shape, width))
    for expert in np.unique(chosen):
        inner, outer = (slice(expert * size, (expert + 1) * size) for size in (ffn, width))
        tokens, ranks = np.nonzero(chosen == expert)
        out[tokens, ranks] = swiglu(x[tokens], w_gate[inner], w_up[inner], w_down[outer])
    return out


def block(
    x: ArrayLike,
    weights: Any,
    *,
    config: Any,
    positions: ArrayLike,
    sequence_ids: ArrayLike | None = None,
    tap: Tap | None = None,
) -> Array:
    """One block, `[n, width]` to `[n, width]`: attention, then feed-forward, each beside a residual.

    `weights` has attn_norm, wq, wk, wv, wo, ffn_norm, w_gate, w_up, w_down, and biases where there are.
    Taps every point of a block but the last, `out`, which is returned.
    """
    tap = tap or _ignore
    x = _float64(x)
    normed = rms_norm(x, weights.attn_norm, eps=config.rms_norm_eps)
    tap("attn_norm", normed)
    heads = {"n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads, **_biases(weights, "bq", "bk", "bv")}
    q, k, v = qkv(normed, weights.wq, weights.wk, weights.wv, **heads)
    tap("q", q)
    tap("k", k)
    tap("v", v)
    q, k = rope(q, k, positions, rope_frequencies(config), magnitude=rope_magnitude(config))
    tap("q_rope", q)
    tap("k_rope", k)
    places = {"positions": positions, "sequence_ids": sequence_ids, **_biases(weights, "bo")}
    attn_out = attention(q, k, v, weights.wo, **places, tap=tap)
    tap("attn_out", attn_out)

    ffn_inp = _added(x, attn_out)
    tap("ffn_inp", ffn_inp)
    normed = rms_norm(ffn_inp, weights.ffn_norm, eps=config.rms_norm_eps)
    tap("ffn_norm", normed)
    ffn_out = feed_forward(normed, weights, config, tap)
    tap("ffn_out", ffn_out)
    return _added(ffn_inp, ffn_out)


def feed_forward(x: Array, weights: Any, config: Any, tap: Tap | None = None) -> Array:
    """A block's own network: `experts` where its `weights` have a router, else `swiglu`."""
    matrices = weights.w_gate, weights.w_up, weights.w_down
    if getattr(weights, "w_router", None) is not None:
        return experts(x, weights.w_router, *matrices, n_used=config.n_experts_used, tap=tap)
    return swiglu(x, *matrices, tap=tap, **_biases(weights, "b_gate", "b_up", "b_down"))


def _biases(weights: Any, *names: str) -> dict[str, Any]:
    """Those of the named biases that there are; a Llama-2 has none."""
    return {name: bias for name in names if (bias := getattr(weights, name, None)) is not None}


def _to_stream(x: Array, w: Any) -> Array:
    return _linear(x, w)  # what is added to the residual


def _added(x: Array, y: Array) -> Array:
    return x + y  # a residual sum


def output_logits(x: ArrayLike, weights: Any, *, config: Any, tap: Tap | None = None) -> Array:
    """The final norm and the output head: `[n, width]` (the last block's output) to `[n, vocab]`.

    `weights` has output_norm and output. Taps `output_norm`.
    """
    normed = rms_norm(x, weights.output_norm, eps=config.rms_norm_eps)
    (tap or _ignore)("output_norm", normed)
    return _head(normed, weights.output)


def _head(x: Array, w: Any) -> Array:
    return _linear(x, w)


def logits(
    token_ids: ArrayLike,
    weights: Any,
    *,
    config: Any,
    positions: ArrayLike,
    sequence_ids: ArrayLike | None = None,
    tap: Tap | None = None,
) -> Array:
    """The whole model: `token_ids [n]` to `[n, vocab]`.

    `weights` has token_embd, blocks (gone through once, in order: it may load them one by one),
    output_norm and output. Taps `embd`, `blk.N.<point>`, `blk.N.out` and `output_norm`.
    """
    tap = tap or _ignore
    x = embed(token_ids, weights.token_embd)
    tap("embd", x)
    for number, block_weights in enumerate(weights.blocks):

        def tap_block(point: str, array: Array, prefix: str = f"blk.{number}.") -> None:
            tap(prefix + point, array)

        x = block(
            x, block_weights, config=config, positions=positions, sequence_ids=sequence_ids, tap=tap_block
        )
        tap_block("out", x)
    return output_logits(x, weights, config=config, tap=tap)
