"""Llamas as frameworks write them, step by step in one precision: each choice that one of them makes.

All are right. What differs is where half precision is left for float32 and where it is come back to: the
norm's squares, the scores, the softmax, RoPE's angles and products, SiLU, the residual stream. Sums of
products are float32 in all of them, as on every device; a sum in half precision is a bug.

    transformers   norm in float32, then half times the weight; eager attention keeps scores in half, its
                   softmax is float32; angles in float32, cosines and products in half; the fused attention
    Meta           as these, RoPE by complex numbers in float32
    gpt-fast       norm and RoPE in float32, the fused attention
    litgpt         the norm's weight multiplied in float32 too
    llama.cpp      scores and softmax in float32, frequencies of RoPE multiplied one after the other
    MLX, candle    a softmax in half precision, SiLU in half precision
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["FRAMEWORKS", "FrameworkProgram", "framework_programs"]

Kept: TypeAlias = Literal["half", "float32"]


@dataclass(frozen=True)
class FrameworkProgram:
    """A Llama with the oracle's function names and torch tensors.

    Attributes:
        dtype: of weights and results.
        norm: what the root is taken in: "half", "float32" before a product with the weight in half
            precision, or "all float32".
        scores: what q k^T is kept in before the softmax.
        scaled: what 1/sqrt(head_dim) multiplies: the "scores", the "queries", or "both" q and k by its root.
        softmax: what exp and the division are computed in.
        fused: attention is torch's own call, which shows its output alone.
        turn: what RoPE's cosines and products are computed in.
        angles: "float64"; "float32", position times a frequency; "repeated", each frequency the one before
            times the same float32 number.
        silu: what SiLU's result is kept in before it multiplies.
        residual: what the sums of the residual are kept in inside a block.
    """

    dtype: torch.dtype
    norm: Literal["half", "float32", "all float32"] = "float32"
    scores: Kept = "half"
    scaled: Literal["scores", "queries", "both"] = "scores"
    softmax: Kept = "float32"
    fused: bool = False
    turn: Kept = "half"
    angles: Literal["float64", "float32", "repeated"] = "float32"
    silu: Kept = "half"
    residual: Kept = "half"

    def of(self, kept: Kept) -> torch.dtype:
        """The dtype that is meant."""
        return self.dtype if kept == "half" else torch.float32

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        """x w^T in the dtype, as torch sums it."""
        return functional.linear(x.to(self.dtype), w.to(self.dtype))

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        """`[n, width]`"""
        wide = x if self.norm == "half" else x.float()
        root = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        if self.norm == "all float32":
            return (wide * root * weight.float()).to(self.dtype)
        return (wide * root).to(self.dtype) * weight.to(self.dtype)

    def qkv(self, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, *, n_heads: int, n_kv_heads: int) -> Any:
        """`[n, heads, head_dim]` each."""
        heads = (n_heads, n_kv_heads, n_kv_heads)
        made = (self.product(x, w) for w in (wq, wk, wv))
        return tuple(torch.unflatten(y, -1, (n, -1)) for y, n in zip(made, heads, strict=True))

    def rope(self, q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbours turned."""
        angles = self._angles(positions, frequencies)[:, None]
        kept = self.of(self.turn)
        cos, sin = angles.cos().to(kept), angles.sin().to(kept)

        def turned(x: Tensor) -> Tensor:
            even, odd = x[..., 0::2].to(kept), x[..., 1::2].to(kept)
            pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1)
            return pairs.flatten(-2).to(self.dtype)

        return turned(q), turned(k)

    def _angles(self, positions: Tensor, frequencies: Tensor) -> Tensor:
        if self.angles == "float64":
            return positions.double()[:, None] * frequencies
        if self.angles == "float32":
            return positions.float()[:, None] * frequencies.float()
        ratio = (frequencies[1:2] / frequencies[0]).float() if len(frequencies) > 1 else frequencies.float()
        angle, columns = positions.float() * frequencies[0].float(), []
        for _ in range(len(frequencies)):
            columns.append(angle)
            angle = angle * ratio
        return torch.stack(columns, 1)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, wo: Tensor, *, positions: Tensor, tap: Any = None
    ) -> Tensor:
        """`[n, width]`"""
        group = q.shape[1] // k.shape[1]
        queries = q.transpose(0, 1)
        keys, values = (x.repeat_interleave(group, dim=1).transpose(0, 1) for x in (k, v))
        hidden = positions[None] > positions[:, None]
        if self.fused:
            made = functional.scaled_dot_product_attention(
                queries[None], keys[None], values[None], attn_mask=~hidden
            )
            return self.product(made[0].transpose(0, 1).flatten(1), wo)
        scores, scaled = self._scores(queries, keys)
        probs = self._softmax(scaled.masked_fill(hidden, float("-inf")))
        context = torch.matmul(probs.to(self.dtype), values).transpose(0, 1).flatten(1)
        if tap:
            tap("attn_scores", scores.transpose(0, 1))
            tap("attn_probs", probs.transpose(0, 1))
            tap("attn_context", context)
        return self.product(context, wo)

    def _scores(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """q k^T as it is shown, and scaled as the softmax takes it, `[heads, n, n]`."""
        scale = queries.shape[-1] ** -0.5
        if self.scaled == "scores":
            kept = self.of(self.scores)
            scores = torch.matmul(queries.to(kept), keys.mT.to(kept))
            return scores, scores * scale
        kept = self.of(self.scores)
        if self.scaled == "queries":
            scaled = torch.matmul((queries * scale).to(kept), keys.mT.to(kept))
        else:
            scaled = torch.matmul((queries * scale**0.5).to(kept), (keys.mT * scale**0.5).to(kept))
        return scaled / scale, scaled

    def _softmax(self, scaled: Tensor) -> Tensor:
        if self.softmax == "float32":
            return torch.softmax(scaled.float(), -1).to(self.dtype)
        low = scaled.to(self.dtype)
        e = torch.exp(low - low.amax(-1, keepdim=True))
        return e / e.sum(-1, keepdim=True)  # torch sums half precision in float32, and rounds the sum

    def swiglu(self, x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor, tap: Any = None) -> Tensor:
        """`[n, width]`"""
        gate, up = self.product(x, w_gate), self.product(x, w_up)
        product = (functional.silu(gate.to(self.of(self.silu))) * up).to(self.dtype)
        if tap:
            tap("ffn_gate", gate)
            tap("ffn_up", up)
            tap("ffn_swiglu", product)
        return self.product(product, w_down)

    def block(self, x: Tensor, weights: Any, *, config: Any, positions: Tensor, tap: Any = None) -> Tensor:
        """`[n, width]`; a residual in float32 is rounded where it is shown."""
        w, eps = weights, config.rms_norm_eps
        show = tap or (lambda point, array: None)
        stream = x.to(self.of(self.residual))
        normed = self.rms_norm(stream.to(self.of(self.residual)), w.attn_norm, eps=eps)
        show("attn_norm", normed)
        q, k, v = self.qkv(normed, w.wq, w.wk, w.wv, n_heads=config.n_heads, n_kv_heads=config.n_kv_heads)
        pair = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
        turns = config.rope_theta ** (-pair / config.head_dim) / config.rope_scale
        for point, array in (("q", q), ("k", k), ("v", v)):
            show(point, array)
        q, k = self.rope(q, k, positions, turns)
        show("q_rope", q)
        show("k_rope", k)
        made = self.attention(q, k, v, w.wo, positions=positions, tap=tap)
        stream = stream + made
        show("attn_out", made)
        show("ffn_inp", stream.to(self.dtype))
        normed = self.rms_norm(stream, w.ffn_norm, eps=eps)
        show("ffn_norm", normed)
        made = self.swiglu(normed, w.w_gate, w.w_up, w.w_down, tap=tap)
        show("ffn_out", made)
        return (stream + made).to(self.dtype)

    def output_logits(self, x: Tensor, weights: Any, *, config: Any, tap: Any = None) -> Tensor:
        """`[n, vocab]`"""
        normed = self.rms_norm(x, weights.output_norm, eps=config.rms_norm_eps)
        if tap:
            tap("output_norm", normed)
        return self.product(normed, weights.output)


FRAMEWORKS: Mapping[str, FrameworkProgram] = {
    "transformers, eager": FrameworkProgram(torch.float32),
    "transformers, sdpa": FrameworkProgram(torch.float32, fused=True),
    "Meta": FrameworkProgram(torch.float32, turn="float32"),
    "gpt-fast": FrameworkProgram(torch.float32, turn="float32", fused=True),
    "litgpt": FrameworkProgram(torch.float32, norm="all float32", fused=True),
    "llama.cpp": FrameworkProgram(
        torch.float32, norm="all float32", scores="float32", turn="float32", angles="repeated", silu="float32"
    ),
    "softmax in half": FrameworkProgram(torch.float32, softmax="half"),
    "scaled queries": FrameworkProgram(torch.float32, scaled="queries"),
    "scaled by roots": FrameworkProgram(torch.float32, scaled="both", scores="float32"),
    "norm in half": FrameworkProgram(torch.float32, norm="half"),
    "residual in float32": FrameworkProgram(torch.float32, residual="float32"),
    "exact angles": FrameworkProgram(torch.float32, angles="float64", silu="float32"),
}
"""By name; in float32 until `framework_programs` gives them another dtype."""


def framework_programs(dtype: torch.dtype) -> dict[str, FrameworkProgram]:
    """All of them in a dtype, but squares in float16, which overflow from 256 on and vanish below 2^-12."""
    return {
        name: replace(program, dtype=dtype)
        for name, program in FRAMEWORKS.items()
        if not (program.norm == "half" and dtype == torch.float16)
    }
