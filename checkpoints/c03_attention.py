"""Checkpoint 3, attention: each token's mix of the values of the tokens before it.

    scores[t, h, s] = q[t, h] . k[s, h']                     h' = h // (n_heads / n_kv_heads)
    probs = softmax(scores / sqrt(head_dim))                 over s with positions[s] <= positions[t]
    context[t, h] = sum_s probs[t, h, s] v[s, h'];           out = context Wo^T
    q [n, n_heads, head_dim], k and v [n, n_kv_heads, head_dim], out [n, width]

The mask compares positions, not places in the cache. Source: Vaswani et al. 2017 (arXiv 1706.03762),
equation 1; Ainslie et al. 2023 (arXiv 2305.13245); llama.cpp, `build_attn_mha` in `src/llama-graph.cpp`.

Stands on `scaled_dot_product_attention`: never writes the scores to memory, knows grouped heads. With a
`tap` the same is done step by step in float32, so that scores and probabilities can be seen.

The cache of a layer holds `k` and `v` `[n_sequences, capacity, n_kv_heads, head_dim]`, k after RoPE,
`positions` `[n_sequences, capacity]`, -1 where a slot is free, and `slots` `[n]`, the places of this call's
tokens counted over all sequences, reserved already. `cache.update(k, v)` writes there and returns all slots;
`cache.visible(positions, sequence_ids)` says which of them each token may look at: those that hold a token
of its own sequence at a position not later. A layer written for numpy is handed the same as arrays.
Between calls tokens may be taken out (`KVCache.remove`): their slots have position -1 again, and what comes
next is written there.

A layer that brings its own cache keeps it in `cache.own`: None at first, one for each layer of the model and
for all its sequences, there again in the next call. What it keeps of a call are keys, values, positions
and sequences; a call without a cache remembers nothing and leaves nothing. Calls after tokens were taken out
are tried with the cache that is handed over only.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_ckpt.points import Case, Checkpoint, Given, block_point
from llama_ckpt.weights.kv_cache import LayerCache
from llama_ckpt.weights.quants import Weight, linear

__all__ = ["CHECKPOINT", "attention"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    wo: Weight,
    *,
    positions: Tensor,
    cache: LayerCache | None = None,
    sequence_ids: Tensor | None = None,
    bo: Tensor | None = None,
    tap: Callable[[str, Tensor], object] | None = None,
) -> Tensor:
    """Causal attention over this call's tokens and, with a cache, all those before them.

    Args:
        q: `[n, n_heads, head_dim]`, after RoPE.
        k, v: `[n, n_kv_heads, head_dim]`, k after RoPE.
        wo: `[width, n_heads * head_dim]`.
        positions: `[n]` int64.
        cache: this layer's cache, its slots reserved; k and v are written to it.
        sequence_ids: `[n]` int64; tokens see their own sequence only. None: all are of one.
        bo: `[width]`, added to what is returned; a Llama-2 has none.
        tap: gets "attn_scores" and "attn_probs" `[n, n_heads, n_keys]`, "attn_context".

    Returns:
        `[n, width]`, dtype of q.
    """
    if cache is not None:
        k, v = cache.update(k, v)  # [n_keys, n_kv_heads, head_dim], static size
        visible = cache.visible(positions, sequence_ids)  # [n, n_keys]
    else:
        visible = positions[None, :] <= positions[:, None]
        if sequence_ids is not None:
            visible = visible & (sequence_ids[None, :] == sequence_ids[:, None])
    if tap is None:
        q_, k_, v_ = (x.transpose(0, 1).unsqueeze(0) for x in (q, k.to(q.dtype), v.to(q.dtype)))
        grouped = q.shape[1] != k.shape[1]
        context = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=visible, enable_gqa=grouped)
        context = context[0].transpose(0, 1).flatten(1)  # [n, n_heads * head_dim]
    else:
        context = step_by_step(q, k, v, visible, tap)
    return linear(context, wo, bo)


def step_by_step(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, tap: Callable[[str, Tensor], object]
) -> Tensor:
    """The same context `[n, n_heads * head_dim]`, every step shown to `tap`; half precision in float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    keys, values = (
        x.to(wide).repeat_interleave(group, dim=1) for x in (k, v)
    )  # a key head for each query head
    scores = torch.einsum("thd,shd->ths", q.to(wide), keys)
    tap("attn_scores", scores)
    masked = (scores / q.shape[-1] ** 0.5).masked_fill(~visible[:, None, :], float("-inf"))
    probs = masked.softmax(dim=-1)
    tap("attn_probs", probs)
    context = torch.einsum("ths,shd->thd", probs, values).flatten(1).to(q.dtype)
    tap("attn_context", context)
    return context


def cases(given: Given) -> Iterator[Case]:
    """Each block's attention on the recorded queries, keys and values."""
    for number in given.blocks:
        arguments = {
            "q": given[block_point(number, "q_rope")],
            "k": given[block_point(number, "k_rope")],
            "v": given[block_point(number, "v")],
            "wo": given.weights.blocks[number].wo,
            "positions": given.positions,
        }
        arguments |= given.weights.blocks[number].biases("bo")
        inner = ("attn_scores", "attn_probs", "attn_context")
        taps = {point: block_point(number, point) for point in inner}
        yield Case("attention", arguments, (block_point(number, "attn_out"),), taps)


CHECKPOINT = Checkpoint(
    id="3",
    title="attention",
    function=attention,
    stands_on=("1B", "2"),
    points=("attn_scores", "attn_probs", "attn_context", "attn_out"),
    max_abs=1e-4,
    cases=cases,
    torch_function="torch.nn.functional.scaled_dot_product_attention: fused, grouped heads, float32 softmax",
    mistakes=(
        "The scale 1/sqrt(head_dim) is missing, doubled, or taken of the width.",
        "The mask is off by one: a token cannot see itself, or sees the next.",
        "The mask is applied after the softmax, so that rows no longer sum to one.",
        "The softmax runs over the queries instead of the keys.",
        "A query head reads the wrong key head: h % n_kv_heads instead of h // group.",
        "The cache is written one slot late, not grown, or keeps keys before RoPE.",
    ),
)
