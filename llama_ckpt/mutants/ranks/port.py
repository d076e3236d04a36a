"""A Llama on several ranks in numpy float32, of the kind that people write; a fault overrides a method.

Each step is done for all ranks one after the other, so that a collective is a function of a list. Matrices
are cut as Megatron-LM cuts them; blocks are dealt out over pipeline stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["Array", "RankPort", "Shard"]

Array: TypeAlias = NDArray[Any]
F = np.float32


class Shard:
    """One rank's weights of one block; `[out, in]`, cut."""

    wq: Array
    wk: Array
    wv: Array
    wo: Array
    w_gate: Array
    w_up: Array
    w_down: Array


def shares(n: int, ranks: int) -> list[range]:
    """n things over ranks, the first having one more where it does not go evenly."""
    each, more = divmod(n, ranks)
    ends = np.cumsum([0, *(each + (rank < more) for rank in range(ranks))]).tolist()
    return [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]


class RankPort:
    """The port.

    Attributes:
        n: ranks of a stage; stages: of the pipeline.
        reduced: whether `attn_out` and `ffn_out` are recorded after the sum over ranks.
    """

    n = 2
    stages = 1
    reduced = False

    def __init__(self, model: Path) -> None:
        file = open_gguf(model)
        self.config = LlamaConfig.from_gguf(file)
        self.weights = OracleWeights(file, self.config)
        self.seen: list[dict[str, Array]] = []

    # -- who has what

    def heads(self, rank: int) -> range:
        """A rank's query heads."""
        return shares(self.config.n_heads, self.n)[rank]

    def key_heads(self, rank: int) -> range:
        """The key heads of a rank's query heads."""
        group, own = self.config.n_heads // self.config.n_kv_heads, self.heads(rank)
        return range(own.start // group, (own.stop - 1) // group + 1)

    def features(self, rank: int) -> range:
        """A rank's features of the feed-forward."""
        return shares(self.config.ffn, self.n)[rank]

    def vocabulary(self, rank: int) -> range:
        """A rank's part of the vocabulary."""
        return shares(self.config.vocab_size, self.n)[rank]

    def layers(self, stage: int) -> range:
        """A stage's blocks."""
        return shares(self.config.n_layers, self.stages)[stage]

    def layer(self, block: int, stage: int) -> Any:
        """A block's weights, whole."""
        return self.weights.blocks[block]

    # -- weights

    def rows(self, numbers: range) -> Array:
        """Rows of the matrices of these heads."""
        d = self.config.head_dim
        return np.concatenate([np.arange(h * d, (h + 1) * d) for h in numbers])

    def qkv(self, w: Any, rank: int) -> tuple[Array, Array, Array]:
        """A rank's rows of wq, wk and wv."""
        keys = self.rows(self.key_heads(rank))
        return w.wq[self.rows(self.heads(rank))], w.wk[keys], w.wv[keys]

    def gate_up(self, w: Any, rank: int) -> tuple[Array, Array]:
        """A rank's rows of the feed-forward's two matrices."""
        own = self.features(rank)
        return w.w_gate[own.start : own.stop], w.w_up[own.start : own.stop]

    def output_columns(self, w: Any, rank: int) -> Array:
        """A rank's columns of wo."""
        return np.asarray(w.wo[:, self.rows(self.heads(rank))])

    def down_columns(self, w: Any, rank: int) -> Array:
        """A rank's columns of w_down."""
        own = self.features(rank)
        return np.asarray(w.w_down[:, own.start : own.stop])

    def shard(self, w: Any, rank: int) -> Shard:
        """A rank's weights of a block."""
        cut = Shard()
        cut.wq, cut.wk, cut.wv = (x.astype(F) for x in self.qkv(w, rank))
        cut.w_gate, cut.w_up = (x.astype(F) for x in self.gate_up(w, rank))
        cut.wo, cut.w_down = self.output_columns(w, rank).astype(F), self.down_columns(w, rank).astype(F)
        return cut

    # -- steps

    def norm(self, x: Array, weight: Array, rank: int) -> Array:
        """RMS norm."""
        scale = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=F) + F(self.config.rms_norm_eps))
        return np.asarray(x * scale * weight.astype(F))

    def turned(self, x: Array, positions: Array, rank: int) -> Array:
        """RoPE, neighbours together."""
        c = self.config
        frequencies = c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim) / c.rope_scale
        angles = positions[:, None] * frequencies
        cos, sin = (f(angles).astype(F)[:, None] for f in (np.cos, np.sin))
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)

    def repeated(self, x: Array, rank: int) -> Array:
        """A rank's key heads for its query heads."""
        group = self.config.n_heads // self.config.n_kv_heads
        first = self.key_heads(rank).start
        return np.asarray(x[:, [head // group - first for head in self.heads(rank)]])

    def reduce(self, parts: Sequence[Array], rank: int) -> Array:
        """The sum over ranks, as a rank gets it."""
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return np.asarray(total, F)

    def added(self, x: Array, parts: Sequence[Array], rank: int) -> Array:
        """The residual sum of a rank."""
        return np.asarray(x + self.reduce(parts, rank))

    def part(self, x: Array, weight: Array, residual: Array, rank: int) -> Array:
        """A rank's part of a sum."""
        return np.asarray(x @ weight.T)

    def bias(self, x: Array, bias: Array | None, rank: int) -> Array:
        """A rank's part with what is added to the sum once."""
        return x if bias is None or rank else np.asarray(x + bias.astype(F))

    def embedded(self, tokens: Array, rank: int) -> Array:
        """Rows of the embedding."""
        return np.asarray(self.weights.token_embd[tokens].astype(F))

    def whole_embedding(self, xs: list[Array]) -> list[Array]:
        """What goes into the first block, of what each rank looked up."""
        return xs

    def head(self, x: Array, rank: int) -> Array:
        """A rank's logits."""
        own = self.vocabulary(rank)
        return np.asarray(x @ self.weights.output[own.start : own.stop].astype(F).T)

    def handed_on(self, xs: list[Array], stage: int) -> list[Array]:
        """What a stage gets of the one before."""
        return xs

    # -- how it is put together

    def keep(self, name: str, x: Array, rank: int) -> Array:
        """Record a tensor of a rank."""
        self.seen[rank][name] = x.astype(F)
        return x

    def attention(self, x: Array, w: Shard, positions: Array, at: str, rank: int, r: int) -> Array:
        """A rank's context; `r` is its place in the stage."""
        d, n = self.config.head_dim, len(x)
        q, k, v = ((x @ one.T).reshape(n, -1, d) for one in (w.wq, w.wk, w.wv))
        for name, one in (("q", q), ("k", k), ("v", v)):
            self.keep(at + name, one, rank)
        q = self.keep(at + "q_rope", self.turned(q, positions, r), rank)
        k = self.keep(at + "k_rope", self.turned(k, positions, r), rank)
        scores = np.einsum("nhd,mhd->nhm", q, self.repeated(k, r))
        self.keep(at + "attn_scores", scores, rank)
        visible = (positions[:, None] >= positions)[:, None]
        scaled = np.where(visible, scores * F(d**-0.5), F(-np.inf))
        e = np.exp(scaled - scaled.max(-1, keepdims=True))
        probs = self.keep(at + "attn_probs", e / e.sum(-1, keepdims=True), rank)
        context = np.einsum("nhm,mhd->nhd", probs, self.repeated(v, r)).reshape(n, -1)
        return self.keep(at + "attn_context", context, rank)

    def sums(self, xs: list[Array], parts: list[Array], names: tuple[str, str], first: int) -> list[Array]:
        """The sum over ranks and the residual, recorded under the two names."""
        made = []
        for r, x in enumerate(xs):
            recorded = self.reduce(parts, r) if self.reduced else parts[r]
            self.keep(names[0], recorded, first + r)
            made.append(self.keep(names[1], self.added(x, parts, r), first + r))
        return made

    def block(self, xs: list[Array], number: int, stage: int, positions: Array) -> list[Array]:
        """A block on all ranks of its stage."""
        whole, at, first = self.layer(number, stage), f"blk.{number}.", stage * self.n
        cut = [self.shard(whole, r) for r in range(self.n)]
        parts = []
        for r, (x, w) in enumerate(zip(xs, cut, strict=True)):
            normed = self.keep(at + "attn_norm", self.norm(x, whole.attn_norm, r), first + r)
            context = self.attention(normed, w, positions, at, first + r, r)
            parts.append(self.bias(self.part(context, w.wo, x, r), whole.bo, r))
        xs = self.sums(xs, parts, (at + "attn_out", at + "ffn_inp"), first)
        parts = []
        for r, (x, w) in enumerate(zip(xs, cut, strict=True)):
            normed = self.keep(at + "ffn_norm", self.norm(x, whole.ffn_norm, r), first + r)
            gate = self.keep(at + "ffn_gate", normed @ w.w_gate.T, first + r)
            up = self.keep(at + "ffn_up", normed @ w.w_up.T, first + r)
            gated = self.keep(at + "ffn_swiglu", gate / (1 + np.exp(-gate)) * up, first + r)
            parts.append(self.bias(self.part(gated, w.w_down, x, r), whole.b_down, r))
        return self.sums(xs, parts, (at + "ffn_out", at + "out"), first)

    def run(self, tokens: Sequence[int]) -> list[dict[str, Array]]:
        """Every rank's tensors of a prompt."""
        self.seen = [{} for _ in range(self.n * self.stages)]
        positions = np.arange(len(tokens))
        xs = [self.keep("embd", self.embedded(np.asarray(tokens), r), r) for r in range(self.n)]
        xs = self.whole_embedding(xs)
        for stage in range(self.stages):
            if stage:
                xs = self.handed_on(xs, stage)
            for number in self.layers(stage):
                xs = self.block(xs, number, stage, positions)
        first = (self.stages - 1) * self.n
        for r, x in enumerate(xs):
            normed = self.keep("output_norm", self.norm(x, self.weights.output_norm, r), first + r)
            self.keep("logits", self.head(normed, r), first + r)
        return self.seen
