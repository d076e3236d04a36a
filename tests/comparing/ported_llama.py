"""A Llama as the author of a port writes it: numpy, float32, a method for each step, so that a fault is one.

It owes the oracle nothing but the weights. A wrong program overrides a method; `said` is what `compare`
makes of the dump that it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["Array", "Port", "compared", "prompt", "seeded"]

Array = NDArray[Any]
F = np.float32


@cache
def seeded(**sizes: Any) -> Path:
    """A small seeded model, F32 with grouped heads and Llama 3's theta unless `sizes` say otherwise."""
    shape = {"width": 64, "n_heads": 4, "n_kv_heads": 2, "ffn": 96, "n_layers": 3, "vocab": 320}
    shape |= {"rope_theta": 5e5, "context_length": 65536, "type": "F32"}
    path = Path(mkdtemp(prefix="ported")) / "model.gguf"
    make_seeded(path, **(shape | sizes), seed=1)  # type: ignore[arg-type]
    return path


def prompt(n: int, vocab: int = 320) -> list[int]:
    """BOS and other tokens, no two neighbours alike."""
    return [1, *np.random.default_rng(n).choice(np.arange(3, vocab), n - 1, replace=n > vocab - 3).tolist()]


class Port:
    """The port; `model` is a GGUF file."""

    halves = False
    """Whether wq and wk are Hugging Face's, and RoPE turns pairs (i, i + d/2)."""

    def __init__(self, model: Path) -> None:
        file = open_gguf(model)
        self.model = model
        self.config = LlamaConfig.from_gguf(file)
        self.weights = OracleWeights(file, self.config)
        self.seen: dict[str, Array] = {}

    # -- what a fault overrides

    def norm(self, x: Array, weight: Array) -> Array:
        scale = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=F) + F(self.config.rms_norm_eps))
        return x * scale * weight.astype(F)

    def product(self, x: Array, weight: Array) -> Array:
        return x @ weight.astype(F).T

    def projections(self, weights: Any) -> tuple[Array, Array, Array]:
        if not self.halves:
            return weights.wq, weights.wk, weights.wv
        heads = ((weights.wq, self.config.n_heads), (weights.wk, self.config.n_kv_heads))
        parted = [w.reshape(n, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape) for w, n in heads]
        return parted[0], parted[1], weights.wv

    def frequencies(self) -> Array:
        c = self.config
        return 1.0 / (c.rope_theta ** (np.arange(0, c.head_dim, 2) / c.head_dim)) / c.rope_scale

    def angles(self, positions: Array) -> Array:
        """`[n, pairs]`"""
        return positions[:, None].astype(np.float64) * self.frequencies()

    def table(self, positions: Array) -> tuple[Array, Array]:
        angles = self.angles(positions)
        return np.cos(angles).astype(F), np.sin(angles).astype(F)

    def turn(self, x: Array, positions: Array) -> Array:
        cos, sin = (t[:, None] for t in self.table(positions))
        if self.halves:
            half = x.shape[-1] // 2
            a, b = x[..., :half], x[..., half:]
            return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)

    def cached(self, keys: Array, values: Array) -> tuple[Array, Array]:
        return keys, values

    def repeated(self, x: Array) -> Array:
        """Key heads for query heads."""
        return np.repeat(x, self.config.n_heads // self.config.n_kv_heads, axis=1)

    def probabilities(self, scores: Array, visible: Array) -> Array:
        scaled = np.where(visible, scores * F(self.config.head_dim**-0.5), F(-np.inf))
        e = np.exp(scaled - scaled.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def gated(self, gate: Array, up: Array) -> Array:
        return gate / (1 + np.exp(-gate)) * up

    def embedded(self, tokens: Array) -> Array:
        return self.weights.token_embd[tokens].astype(F)

    def head(self) -> Array:
        return self.weights.output

    # -- how it is put together

    def keep(self, name: str, x: Array) -> Array:
        self.seen[name] = x.astype(F)
        return x

    def attention(self, x: Array, weights: Any, positions: Array, at: str) -> Array:
        c, n = self.config, len(x)
        heads = (c.n_heads, c.n_kv_heads, c.n_kv_heads)
        made = [
            self.product(x, w).reshape(n, h, c.head_dim)
            for w, h in zip(self.projections(weights), heads, strict=True)
        ]
        q, k, v = (self.keep(at + name, y) for name, y in zip("qkv", made, strict=True))
        q = self.keep(at + "q_rope", self.turn(q, positions).astype(F))
        k = self.keep(at + "k_rope", self.turn(k, positions).astype(F))
        keys, values = (self.multiplied(self.repeated(y)) for y in self.cached(k, v))
        scores = self.keep(at + "attn_scores", np.einsum("nhd,mhd->nhm", self.multiplied(q), keys))
        probs = self.probabilities(scores, (positions[:, None] >= positions)[:, None])
        self.keep(at + "attn_probs", probs)
        mixed = self.context(np.einsum("nhm,mhd->nhd", self.multiplied(probs), values).reshape(n, -1))
        return self.keep(at + "attn_out", self.product(self.keep(at + "attn_context", mixed), weights.wo))

    def context(self, mixed: Array) -> Array:
        """What attention's fused kernel gives of its sums."""
        return mixed

    def multiplied(self, x: Array) -> Array:
        """What attention's products take of queries, keys, probabilities and values."""
        return x

    def feed_forward(self, x: Array, weights: Any, at: str) -> Array:
        gate = self.keep(at + "ffn_gate", self.product(x, weights.w_gate))
        up = self.keep(at + "ffn_up", self.product(x, weights.w_up))
        return self.product(self.keep(at + "ffn_swiglu", self.gated(gate, up)), weights.w_down)

    def block(self, x: Array, weights: Any, positions: Array, at: str) -> Array:
        normed = self.keep(at + "attn_norm", self.norm(x, weights.attn_norm))
        x = self.keep(at + "ffn_inp", x + self.attention(normed, weights, positions, at))
        normed = self.keep(at + "ffn_norm", self.norm(x, weights.ffn_norm))
        return x + self.keep(at + "ffn_out", self.feed_forward(normed, weights, at))

    def run(self, tokens: Sequence[int], positions: Sequence[int] | None = None) -> dict[str, Array]:
        """Every point of a run."""
        self.seen = {}
        at = np.arange(len(tokens)) if positions is None else np.asarray(positions)
        x = self.keep("embd", self.embedded(np.asarray(tokens)))
        for number, weights in enumerate(self.weights.blocks):
            prefix = f"blk.{number}."
            x = self.keep(prefix + "out", self.block(x, weights, at, prefix))
        x = self.keep("output_norm", self.norm(x, self.weights.output_norm))
        self.keep("logits", self.product(x, self.head()))
        return self.seen


def compared(
    program: Port,
    folder: Path,
    n: int = 8,
    *,
    first: int = 0,
    kept: Callable[[str], bool] = lambda name: True,
    **options: Any,
) -> Comparison:
    """What `compare` says of the program, run on a prompt of n tokens from position `first`.

    Args:
        kept: which points it records.
        options: of `compare_dump`.
    """
    tokens, positions = prompt(n), list(range(first, first + n))
    with np.errstate(all="ignore"):
        seen = {name: x for name, x in program.run(tokens, positions).items() if kept(name)}
    path = folder / "theirs.safetensors"
    save_dump(path, seen, token_ids=tokens, positions=positions)
    return compare_dump(path, model=program.model, **options)
