"""Reported faults of products, kernels' tiles and of how matrices are cut, and right ways to multiply."""

from __future__ import annotations

import numpy as np

from llama_ckpt.judging.to_precision import to_float16
from llama_ckpt.mutants.real.port import Array, Port
from llama_ckpt.mutants.real.record import Family

__all__ = ["PRODUCTS"]

F = np.float32
PRODUCTS = Family("products, tiles and shards")
DOWN = "blk.0.ffn_out"


@PRODUCTS.bug(
    "ggml-org/llama.cpp#27450 ml-explore/mlx#3912",
    "the kernel's last tile reads past the rows of both operands: what the next rows begin with counts",
    at=DOWN,
    right=r"tile|past|beyond|tail|extra|(columns?|inputs?) .*\d",
    wrong=r"scale|transpos|another block",
    models=("grouped",),
)
class LastTileReadsOn(Port):
    def product(self, x: Array, name: str) -> Array:
        w, short = self.w[f"{name}.weight"], -x.shape[1] % 64
        if not short:
            return super().product(x, name)
        # In memory the next row follows, of activations and of weights; behind the last there is nothing.
        after = [np.concatenate([rows[1:, :short], np.zeros((1, short), F)]) for rows in (x, w)]
        return super().product(x, name) + after[0] @ after[1].T


@PRODUCTS.bug(
    "ggml-org/ggml#1287",
    "the last tile of outputs is never written: those features stay zero",
    at="blk.0.ffn_gate",
    right=r"zero|never written|not written|tile|empty",
    wrong=r"scale|transpos",
    models=("grouped",),
)
class LastOutputsStayZero(Port):
    def product(self, x: Array, name: str) -> Array:
        out = super().product(x, name)
        whole = out.shape[1] // 32 * 32
        return np.where(np.arange(out.shape[1]) < whole, out, F(0))


@PRODUCTS.bug(
    "karpathy/llama2.c#532",
    "the sum goes by eights or sixteens and leaves the row's tail out",
    at=DOWN,
    right=r"(tail|last|columns?|inputs?|missing|left out).*(\d|tail|missing|left out)",
    wrong=r"scale of|transpos|another block",
    models=("grouped",),
)
class TailLeftOut(Port):
    def product(self, x: Array, name: str) -> Array:
        n = x.shape[1] // 32 * 32
        return x[:, :n] @ self.w[f"{name}.weight"][:, :n].T


@PRODUCTS.bug(
    "NVIDIA-NeMo/Automodel#1324",
    "a fused gate and up matrix is cut evenly over two ranks, so that rank 0 has the gate and rank 1 has up",
    at="blk.0.ffn_gate",
    right=r"fused|up|rows? .*(of|from)|another matrix|ffn_up",
    wrong=r"transpos|scale",
)
class FusedCutEvenly(Port):
    def feed_forward(self, x: Array, b: str) -> Array:
        w = np.concatenate([self.w[f"{b}ffn_gate.weight"], self.w[f"{b}ffn_up.weight"]])
        ranks = [np.split(part, 2) for part in np.split(w, 2)]
        saved = dict(self.w)
        self.w[f"{b}ffn_gate.weight"] = np.concatenate([rank[0] for rank in ranks])
        self.w[f"{b}ffn_up.weight"] = np.concatenate([rank[1] for rank in ranks])
        out = super().feed_forward(x, b)
        self.w = saved
        return out


@PRODUCTS.bug(
    "epfLLM/Megatron-LLM#45 Lightning-AI/litgpt#891",
    "a fused matrix that interleaves q, k and v by group is cut as if q, k and v lay one after the other",
    at="blk.0.q",
    right=r"fused|interleav|(attn_k|attn_v|of wk|of wv)",
    wrong=r"transpos|another block",
)
class FusedQkvCutWrongly(Port):
    def load(self) -> None:
        c = self.config
        group = c.n_heads // c.n_kv_heads
        for i in range(c.n_layers):
            names = [f"blk.{i}.attn_{one}.weight" for one in "qkv"]
            q, k, v = (self.w[name].reshape(-1, c.head_dim, c.width) for name in names)
            groups = zip(np.split(q, c.n_kv_heads), k, v, strict=True)
            fused = np.concatenate([np.concatenate([g, k_[None], v_[None]]) for g, k_, v_ in groups])
            cut = np.split(fused, [c.n_kv_heads * group, c.n_kv_heads * (group + 1)])
            for name, part in zip(names, cut, strict=True):
                self.w[name] = part.reshape(-1, c.width)


@PRODUCTS.bug(
    "FlashML-org/FreeToken#429",
    "the sum over ranks after the output projection is missing: only half of the columns count",
    at="blk.0.attn_out",
    right=r"(columns?|inputs?|heads?|rank|half|part).*(missing|left out|only|\d)|all-?reduce",
    wrong=r"transpos|scale of",
)
class NoAllReduce(Port):
    def product(self, x: Array, name: str) -> Array:
        if name.endswith("attn_output"):
            half = x.shape[1] // 2
            return x[:, :half] @ self.w[f"{name}.weight"][:, :half].T
        return super().product(x, name)


@PRODUCTS.bug(
    "huggingface/candle#321",
    "a square matrix is used the other way round, rows as columns",
    at="blk.0.q",
    right=r"transpos",
    wrong=r"permut|another",
)
class Transposed(Port):
    def product(self, x: Array, name: str) -> Array:
        w = self.w[f"{name}.weight"]
        return x @ w if w.shape[0] == w.shape[1] else x @ w.T


@PRODUCTS.bug(
    "huggingface/transformers#27179",
    "the down projection overflows in float16: sums beyond 65,504 become infinite",
    at="blk.1.ffn_out",
    right=r"overflow|65,?504|infinit",
    wrong=r"bfloat16|transpos",
    models=("massive",),
    dtype="float16",
)
class DownOverflows(Port):
    def keep(self, name: str, x: Array) -> Array:
        return super().keep(name, to_float16(np.asarray(x, F)))


# -- right


@PRODUCTS.rightly("sums go through partial sums of 16 columns")
class PartialSums(Port):
    def product(self, x: Array, name: str) -> Array:
        w = self.w[f"{name}.weight"]
        if len(w) > 2000:
            return super().product(x, name)
        out = np.zeros((len(x), len(w)), F)
        for start in range(0, x.shape[1], 16):
            out += x[:, start : start + 16] @ w[:, start : start + 16].T
        return out


@PRODUCTS.rightly("matrices are cut over two ranks, parts summed")
class TwoRanks(Port):
    def product(self, x: Array, name: str) -> Array:
        w, half = self.w[f"{name}.weight"], x.shape[1] // 2
        if name.endswith(("attn_output", "ffn_down")):
            return x[:, half:] @ w[:, half:].T + x[:, :half] @ w[:, :half].T
        top, bottom = np.split(w, [len(w) // 2])
        return np.concatenate([x @ top.T, x @ bottom.T], axis=1)
