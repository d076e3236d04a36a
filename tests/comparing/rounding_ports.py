"""Ports that compute as real programs do beside float32: in integers, TF32, half precision, such a cache.

None of them knows of `llama_ckpt.arithmetic`: each rounds with what torch or numpy have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.comparing.ported_llama import Array, F, Port

__all__ = [
    "Bfloat16Port",
    "Float16Port",
    "FusedBfloat16Port",
    "FusedFloat16Port",
    "HalfCachePort",
    "IntegerPort",
    "TF32Port",
    "in_int8",
    "tf32",
]


def tf32(x: Array) -> Array:
    """The nearest of TF32's numbers: ten digits after the leading one, ties to even."""
    bits = x.astype(F).view(np.uint32)
    rest = bits & np.uint32(0x1FFF)
    up = (rest > 0x1000) | ((rest == 0x1000) & ((bits >> np.uint32(13)) & np.uint32(1) == 1))
    return ((bits & ~np.uint32(0x1FFF)) + up.astype(np.uint32) * np.uint32(0x2000)).view(F)


class TF32Port(Port):
    """Products of weights, and of attention, as tensor cores make them of float32."""

    def product(self, x: Array, weight: Array) -> Array:
        return tf32(x) @ tf32(weight.astype(F)).T

    def multiplied(self, x: Array) -> Array:
        return tf32(x)


def in_int8(x: Array) -> tuple[Array, Array]:
    """Integers and their rows' scales."""
    scale = (np.abs(x).max(-1, keepdims=True) / F(127)).astype(F)
    return np.rint(x / scale).astype(np.int32), scale


class IntegerPort(Port):
    """W8A8: weights in int8 with a scale for each row, activations with one for each token."""

    def product(self, x: Array, weight: Array) -> Array:
        rows, of_rows = in_int8(x.astype(F))
        columns, of_columns = in_int8(weight.astype(F))
        return (rows @ columns.T).astype(F) * of_rows * of_columns.T


class HalfCachePort(Port):
    """Keys and values are kept in float16."""

    def cached(self, keys: Array, values: Array) -> tuple[Array, Array]:
        return keys.astype(np.float16).astype(F), values.astype(np.float16).astype(F)


class _TorchPort(Port):
    """Everything in torch's half precision, norms and softmax in float32, as transformers' Llama."""

    dtype = torch.bfloat16

    def t(self, x: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(x, F)).to(self.dtype)

    def norm(self, x: Array, weight: Array) -> Array:
        wide = torch.from_numpy(np.ascontiguousarray(x, F))
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return (self.t(weight) * scaled.to(self.dtype)).float().numpy()

    def product(self, x: Array, weight: Array) -> Array:
        return (self.t(x) @ self.t(weight).T).float().numpy()

    def turn(self, x: Array, positions: Array) -> Array:
        inverse = torch.from_numpy(self.frequencies().astype(F))
        angles = torch.from_numpy(positions.astype(F))[:, None] * inverse
        cos, sin = (part[:, None].to(self.dtype) for part in (angles.cos(), angles.sin()))
        a, b = self.t(x[..., 0::2]), self.t(x[..., 1::2])
        return torch.stack([a * cos + -b * sin, b * cos + a * sin], -1).reshape(x.shape).float().numpy()

    def attention(self, x: Array, weights: Any, positions: Array, at: str) -> Array:
        c, n = self.config, len(x)
        heads = (c.n_heads, c.n_kv_heads, c.n_kv_heads)
        made = [
            self.product(x, w).reshape(n, h, c.head_dim)
            for w, h in zip(self.projections(weights), heads, strict=True)
        ]
        q, k, v = (self.keep(at + name, y) for name, y in zip("qkv", made, strict=True))
        q = self.keep(at + "q_rope", self.turn(q, positions))
        k = self.keep(at + "k_rope", self.turn(k, positions))
        keys, values = (self.t(self.repeated(y)).transpose(0, 1) for y in (k, v))
        scores = self.t(q).transpose(0, 1) @ keys.transpose(1, 2)
        self.keep(at + "attn_scores", scores.transpose(0, 1).float().numpy())
        hidden = torch.from_numpy(positions[:, None] < positions)
        scaled = self.scaled(scores).masked_fill(hidden, -torch.inf)
        probs = torch.softmax(scaled, -1, dtype=torch.float32).to(self.dtype)
        self.keep(at + "attn_probs", probs.transpose(0, 1).float().numpy())
        mixed = (probs @ values).transpose(0, 1).reshape(n, -1).float().numpy()
        return self.keep(at + "attn_out", self.product(self.keep(at + "attn_context", mixed), weights.wo))

    def scaled(self, scores: torch.Tensor) -> torch.Tensor:
        """As the softmax takes them."""
        return scores * self.config.head_dim**-0.5

    def gated(self, gate: Array, up: Array) -> Array:
        return (torch.nn.functional.silu(self.t(gate)) * self.t(up)).float().numpy()

    def embedded(self, tokens: Array) -> Array:
        return self.t(self.weights.token_embd[tokens]).float().numpy()

    def block(self, x: Array, weights: Any, positions: Array, at: str) -> Array:
        normed = self.keep(at + "attn_norm", self.norm(x, weights.attn_norm))
        x = self.added(x, self.attention(normed, weights, positions, at))
        self.keep(at + "ffn_inp", x)
        normed = self.keep(at + "ffn_norm", self.norm(x, weights.ffn_norm))
        return self.added(x, self.keep(at + "ffn_out", self.feed_forward(normed, weights, at)))

    def added(self, x: Array, y: Array) -> Array:
        """The stream and what is added to it."""
        return (self.t(x) + self.t(y)).float().numpy()


class Bfloat16Port(_TorchPort):
    """In bfloat16."""


class Float16Port(_TorchPort):
    """In float16."""

    dtype = torch.float16


class _FusedPort(_TorchPort):
    """As kernels in half precision do it: each step in float32, its result alone rounded."""

    def rounded(self, x: Array) -> Array:
        return self.t(x).float().numpy()

    def norm(self, x: Array, weight: Array) -> Array:
        return self.rounded(Port.norm(self, x, weight))

    def turn(self, x: Array, positions: Array) -> Array:
        return self.rounded(Port.turn(self, x, positions))

    def gated(self, gate: Array, up: Array) -> Array:
        return self.rounded(Port.gated(self, gate, up))

    def attention(self, x: Array, weights: Any, positions: Array, at: str) -> Array:
        return Port.attention(self, x, weights, positions, at)

    def context(self, mixed: Array) -> Array:
        return self.rounded(mixed)


class FusedBfloat16Port(_FusedPort):
    """In bfloat16."""


class FusedFloat16Port(_FusedPort):
    """In float16."""

    dtype = torch.float16
