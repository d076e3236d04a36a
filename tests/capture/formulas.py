"""What a dump must satisfy by itself: the formulas that tie one recorded point to the next.

Written in numpy float64 from llama.cpp's own recorded inputs of each step, with the weights left
out, so that a tensor transposed, trimmed or named wrongly cannot pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["relations"]

Float64 = NDArray[np.float64]


def relations(
    dump: Mapping[str, NDArray[np.float32]], block: int, positions: tuple[int, ...]
) -> Iterator[tuple[str, Float64, Float64]]:
    """Name, recorded value and value from the formula, for every relation within a block."""
    point = {
        name.removeprefix(f"blk.{block}."): dump[name].astype(np.float64)
        for name in dump
        if name.startswith(f"blk.{block}.")
    }
    before = dump["embd" if block == 0 else f"blk.{block - 1}.out"].astype(np.float64)
    q, k, v = point["q_rope"], point["k_rope"], point["v"]
    group = q.shape[1] // k.shape[1]  # query heads that share a key head
    keys, values = k.repeat(group, axis=1), v.repeat(group, axis=1)
    yield "q_rope", q, rotated(point["q"], positions)
    yield "k_rope", k, rotated(point["k"], positions)
    yield "attn_scores", point["attn_scores"], np.einsum("ihd,jhd->ihj", q, keys)
    yield "attn_probs", point["attn_probs"], causal_softmax(point["attn_scores"] / np.sqrt(q.shape[2]))
    context = np.einsum("ihj,jhd->ihd", point["attn_probs"], values)
    yield "attn_context", point["attn_context"], context.reshape(len(context), -1)
    yield "ffn_inp", point["ffn_inp"], before + point["attn_out"]
    gate = point["ffn_gate"]
    yield "ffn_swiglu", point["ffn_swiglu"], gate / (1 + np.exp(-gate)) * point["ffn_up"]
    yield "out", point["out"], point["ffn_inp"] + point["ffn_out"]


def rotated(x: Float64, positions: tuple[int, ...]) -> Float64:
    """RoPE on neighbouring pairs, as rotation of complex numbers."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-np.arange(half) / half)
    turn = np.exp(1j * np.outer(positions, frequencies))[:, None, :]
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * turn
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def causal_softmax(scores: Float64) -> Float64:
    """Softmax over the keys that are not later than the query."""
    later = np.triu(np.ones((len(scores), len(scores)), bool), k=1)[:, None, :]
    powers = np.where(later, 0.0, np.exp(scores - scores.max(axis=-1, keepdims=True)))
    return powers / powers.sum(axis=-1, keepdims=True)
