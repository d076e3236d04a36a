"""A Llama as an ordinary porter writes it: numpy, float32, one method a step, so that a fault is one of them.

It owes the oracle nothing but the weights that the file dequantizes to. Grouped heads, positions, left
padding that is masked, and a KV cache that several calls fill; what it records are the rows of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["Array", "Port"]

Array: TypeAlias = Any
"""A numpy array; what arithmetic makes of arrays of any type has no type of its own."""

F = np.float32


@cache
def _weights(model: Path) -> Mapping[str, Array]:
    """All matrices of a file; the ports of one model share them, so no fault may write into them."""
    file = open_gguf(model)
    return {name: file.float32(name) for name in file.tensors}


class Port:
    """The port.

    Attributes:
        model: the GGUF file. config: its sizes.
        w: its tensors by their names there, float32; a fault puts others into `self.w`, a copy.
        n_pad: rows of padding on the left of the present call.
        first: the position of the prompt's first token.
    """

    def __init__(self, model: Path) -> None:
        self.model = model
        self.config = LlamaConfig.from_gguf(open_gguf(model))
        self.w = dict(_weights(model))
        self.n_pad = self.first = 0
        self.seen: dict[str, Array] = {}
        self.load()
        self.reset()

    def load(self) -> None:
        """What a fault of the loading changes: `self.w`."""

    def reset(self) -> None:
        """Forget the cache."""
        c = self.config
        empty = np.zeros((0, c.n_kv_heads, c.head_dim), F)
        self.keys, self.values = [empty] * c.n_layers, [empty] * c.n_layers

    # the steps, one method each

    def embed(self, ids: Array) -> Array:
        """Rows of the token embedding."""
        return self.w["token_embd.weight"][ids]

    def norm(self, x: Array, weight: Array) -> Array:
        """RMSNorm of each row."""
        mean = np.mean(x * x, axis=-1, keepdims=True, dtype=F)
        return x / np.sqrt(mean + F(self.config.rms_norm_eps)) * weight

    def product(self, x: Array, name: str) -> Array:
        """Rows times a matrix of the file, such as blk.0.attn_q."""
        return x @ self.w[f"{name}.weight"].T

    def frequencies(self) -> Array:
        """Radians a position, `[head_dim / 2]`, float64."""
        c = self.config
        plain = c.rope_theta ** (-np.arange(0, c.head_dim, 2, dtype=np.float64) / c.head_dim)
        return plain / c.rope_scale / (np.asarray(c.rope_factors) if c.rope_factors else 1.0)

    def positions(self, n: int) -> Array:
        """Of the rows of this call, behind what is cached; padding stands where the prompt begins."""
        return np.maximum(np.arange(n) + len(self.keys[0]) - self.n_pad, 0) + self.first

    def angles(self, positions: Array) -> Array:
        """`[rows, head_dim / 2]`"""
        return np.asarray(positions, np.float64)[:, None] * self.frequencies()

    def rope(self, x: Array, positions: Array, which: str) -> Array:
        """Turn pairs of neighbours of `[rows, heads, head_dim]`; `which` is "q" or "k"."""
        angles = self.angles(positions)
        cos, sin = np.cos(angles).astype(F)[:, None], np.sin(angles).astype(F)[:, None]
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)

    def heads(self, x: Array, n_heads: int) -> Array:
        """`[rows, width]` as `[rows, heads, head_dim]`."""
        return x.reshape(len(x), n_heads, self.config.head_dim)

    def qkv(self, x: Array, block: str) -> tuple[Array, Array, Array]:
        """Queries, keys and values of a block, in heads."""
        c = self.config
        return (
            self.heads(self.product(x, block + "attn_q"), c.n_heads),
            self.heads(self.product(x, block + "attn_k"), c.n_kv_heads),
            self.heads(self.product(x, block + "attn_v"), c.n_kv_heads),
        )

    def cached(self, number: int, k: Array, v: Array) -> tuple[Array, Array]:
        """All keys and values so far, those of this call behind them."""
        self.keys[number] = np.concatenate([self.keys[number], k])
        self.values[number] = np.concatenate([self.values[number], v])
        return self.keys[number], self.values[number]

    def shared(self, x: Array) -> Array:
        """A key head for each query head."""
        return np.repeat(x, self.config.n_heads // self.config.n_kv_heads, axis=1)

    def visible(self, n: int, m: int) -> Array:
        """`[n, m]`: which of m keys the last n rows see; a row of padding sees itself."""
        causal = np.arange(m) <= np.arange(m - n, m)[:, None]
        padding = np.arange(m) < self.n_pad
        return causal & (~padding | (np.arange(m) == np.arange(m - n, m)[:, None]))

    def scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.config.head_dim**-0.5)

    def scores(self, q: Array, k: Array) -> Array:
        """`[rows, heads, keys]`"""
        return np.einsum("nhd,mhd->nhm", q, k)

    def softmax(self, z: Array) -> Array:
        """Probabilities of `[rows, heads, keys]`, along the keys."""
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def attend(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """Scores, probabilities and context."""
        s = self.scores(q, k)
        hidden = ~self.visible(len(q), len(k))[:, None]
        p = self.softmax(np.where(hidden, F(-np.inf), s * F(self.scale())))
        return s, p, np.einsum("nhm,mhd->nhd", p, v).reshape(len(q), -1)

    def activation(self, gate: Array) -> Array:
        """SiLU."""
        return gate / (1 + np.exp(-gate))

    def add(self, x: Array, branch: Array, block: str) -> Array:
        """A branch on the residual stream."""
        return x + branch

    def head(self, x: Array) -> Array:
        """Logits."""
        return self.product(x, "token_embd" if self.config.tied_output else "output")

    # how they are put together

    def keep(self, name: str, x: Array) -> Array:
        """Record a point, and hand it on."""
        self.seen[name] = np.asarray(x, F)
        return x

    def attention(self, x: Array, number: int, at: Array) -> Array:
        """A block's attention, from its normed rows to what is added."""
        b = f"blk.{number}."
        q, k, v = (self.keep(b + name, y) for name, y in zip("qkv", self.qkv(x, b), strict=True))
        q = self.keep(b + "q_rope", self.rope(q, at, "q"))
        k = self.keep(b + "k_rope", self.rope(k, at, "k"))
        keys, values = self.cached(number, k, v)
        inner = self.attend(q, self.shared(keys), self.shared(values))
        for name, y in zip(("attn_scores", "attn_probs", "attn_context"), inner, strict=True):
            self.keep(b + name, y)
        return self.keep(b + "attn_out", self.product(inner[2], b + "attn_output"))

    def feed_forward(self, x: Array, b: str) -> Array:
        """A block's feed-forward network, the same."""
        gate = self.keep(b + "ffn_gate", self.product(x, b + "ffn_gate"))
        up = self.keep(b + "ffn_up", self.product(x, b + "ffn_up"))
        inner = self.keep(b + "ffn_swiglu", self.activation(gate) * up)
        return self.keep(b + "ffn_out", self.product(inner, b + "ffn_down"))

    def block(self, x: Array, number: int, at: Array) -> Array:
        """Both, with their norms and sums."""
        b = f"blk.{number}."
        normed = self.keep(b + "attn_norm", self.norm(x, self.w[b + "attn_norm.weight"]))
        x = self.keep(b + "ffn_inp", self.add(x, self.attention(normed, number, at), b))
        normed = self.keep(b + "ffn_norm", self.norm(x, self.w[b + "ffn_norm.weight"]))
        return self.keep(b + "out", self.add(x, self.feed_forward(normed, b), b))

    def call(self, ids: Array) -> dict[str, Array]:
        """One call: every point of these rows."""
        self.seen = {}
        at = self.positions(len(ids))
        x = self.keep("embd", self.embed(ids))
        for number in range(self.config.n_layers):
            x = self.block(x, number, at)
        x = self.keep("output_norm", self.norm(x, self.w["output_norm.weight"]))
        self.keep("logits", self.head(x))
        return self.seen

    def run(self, ids: Sequence[int], calls: Sequence[int] = (), n_pad: int = 0) -> dict[str, Array]:
        """Every point of a prompt, padding taken off.

        Args:
            ids: the prompt. calls: how many tokens each call takes; all in one if empty.
            n_pad: rows of padding before it, of the first call.
        """
        self.reset()
        rows = np.asarray(ids)
        parts, done = [], 0
        for n in calls or (len(rows),):
            self.n_pad = n_pad
            chunk = rows[done : done + n]
            parts.append(self.call(np.concatenate([np.zeros(n_pad, int), chunk]) if not done else chunk))
            done += n
        return _joined(parts, n_pad)


def _joined(parts: Sequence[Mapping[str, Array]], n_pad: int) -> dict[str, Array]:
    """Rows after rows, keys that were not there yet as 0, without rows and keys of padding."""
    m = sum(len(part["embd"]) for part in parts)
    joined = {}
    for name in parts[0]:
        rows = [part[name] for part in parts]
        if name.endswith(("attn_scores", "attn_probs")):
            rows = [np.pad(row, ((0, 0), (0, 0), (0, max(m - row.shape[2], 0)))) for row in rows]
            rows = [row[..., n_pad:] for row in rows]
        joined[name] = np.concatenate(rows)[n_pad:]
    return joined
