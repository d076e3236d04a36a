"""Checkpoint 7, the block: attention and feed-forward, each normalized before and added after.

    h = x + attention(rope(qkv(rms_norm(x))))
    out = h + swiglu(rms_norm(h))            x, h, out [n, width]

Checkpoints 1, 1B, 2, 3 and 6, or 6B in a mixture of experts, put together; what is new is the order and the
two residual sums. Judged on block 0; checkpoint 8 judges every block. Source: Touvron et al. 2023 (arXiv
2302.13971), section 2.2 (pre-normalization); llama.cpp, `src/models/llama.cpp`.

Stands on the layers before it; the residual stream stays in the dtype of x.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from checkpoints.c01_rms_norm import rms_norm
from checkpoints.c01b_rope import magnified, rope, rope_frequencies
from checkpoints.c02_qkv import qkv
from checkpoints.c03_attention import attention
from checkpoints.c06_swiglu import swiglu
from checkpoints.c06b_experts import experts
from llama_ckpt.points import Case, Checkpoint, Given, block_point
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.kv_cache import LayerCache
from llama_ckpt.weights.records import BlockWeights

__all__ = ["CHECKPOINT", "block"]


def block(
    x: Tensor,
    weights: BlockWeights,
    *,
    config: LlamaConfig,
    positions: Tensor,
    cache: LayerCache | None = None,
    sequence_ids: Tensor | None = None,
    tap: Callable[[str, Tensor], object] | None = None,
) -> Tensor:
    """One transformer block.

    Args:
        x: `[n, width]`, the residual stream.
        weights: the block's nine weights, ten of a mixture of experts.
        config: heads, epsilon, rotary frequencies.
        positions: `[n]` int64.
        cache: this layer's cache, its slots reserved.
        sequence_ids: `[n]` int64, or None for one sequence.
        tap: gets every point of the block but "out", which is returned.

    Returns:
        `[n, width]`, dtype of x.
    """
    see = tap or (lambda point, tensor: None)
    h = rms_norm(x, weights.attn_norm, eps=config.rms_norm_eps)
    see("attn_norm", h)
    heads = {"n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads, **weights.biases("bq", "bk", "bv")}
    q, k, v = qkv(h, weights.wq, weights.wk, weights.wv, **heads)
    for point, tensor in (("q", q), ("k", k), ("v", v)):
        see(point, tensor)
    q, k = rope(q, k, positions, rope_frequencies(config, x.device), **magnified(config))
    see("q_rope", q)
    see("k_rope", k)
    places = {"positions": positions, "cache": cache, "sequence_ids": sequence_ids, **weights.biases("bo")}
    h = attention(q, k, v, weights.wo, **places, tap=tap)
    see("attn_out", h)
    x = x + h
    see("ffn_inp", x)
    h = rms_norm(x, weights.ffn_norm, eps=config.rms_norm_eps)
    see("ffn_norm", h)
    matrices = weights.w_gate, weights.w_up, weights.w_down
    if weights.w_router is not None:
        h = experts(h, weights.w_router, *matrices, n_used=config.n_experts_used, tap=tap)
    else:
        h = swiglu(h, *matrices, **weights.biases("b_gate", "b_up", "b_down"), tap=tap)
    see("ffn_out", h)
    return x + h


def cases(given: Given) -> Iterator[Case]:
    """Block 0 on the recorded embeddings."""
    if 0 not in given.blocks:
        return
    arguments = {
        "x": given["embd"],
        "weights": given.weights.blocks[0],
        "config": given.config,
        "positions": given.positions,
    }
    yield Case("block", arguments, ("blk.0.out",), {"ffn_inp": block_point(0, "ffn_inp")})


CHECKPOINT = Checkpoint(
    id="7",
    title="first block",
    function=block,
    stands_on=("1", "1B", "2", "3", "6", "6B"),
    points=("ffn_inp", "out"),
    max_abs=1e-4,
    cases=cases,
    torch_function="the layers before it; the two residual sums are torch additions",
    mistakes=(
        "The residual is taken after the norm instead of before it.",
        "A residual sum is missing, or added twice.",
        "The two norms' weights are swapped.",
        "Feed-forward reads the block's input instead of attention's sum (a parallel block, as in GPT-J).",
    ),
)
