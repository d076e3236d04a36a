"""Reported faults of heads, scores, softmax and context, and right ways to attend otherwise."""

from __future__ import annotations

import numpy as np

from llama_ckpt.mutants.real.port import Array, Port
from llama_ckpt.mutants.real.record import Family

__all__ = ["ATTENTION"]

F = np.float32
ATTENTION = Family("attention: heads, scores, softmax")
SCORES, PROBS, CONTEXT = "blk.0.attn_scores", "blk.0.attn_probs", "blk.0.attn_context"


@ATTENTION.bug(
    "ekzhang/jax-js#180 tinygrad/tinygrad#2228 tinygrad/tinygrad#2181",
    "key heads are tiled, 0 1 0 1, where each belongs to neighbouring query heads, 0 0 1 1",
    at=SCORES,
    right=r"heads?.*(tile|instead|repeat|another|wrong|\d)",
    wrong=r"scale|theta",
    models=("grouped",),
)
class KeyHeadsTiled(Port):
    def shared(self, x: Array) -> Array:
        return np.tile(x, (1, self.config.n_heads // self.config.n_kv_heads, 1))


@ATTENTION.bug(
    "mlc-ai/mlc-llm#3426",
    "scores are not divided by the root of the head's size",
    at=PROBS,
    right=r"(scale|root|divided|sqrt)",
    wrong=r"mask|window|causal",
)
class ScaleForgotten(Port):
    def scale(self) -> float:
        return 1.0


@ATTENTION.bug(
    "FareedKhan-dev/train-llm-from-scratch#3 Graylab/DL4Proteins-notebooks#12",
    "scores are divided by the root of the model's width instead of the head's",
    at=PROBS,
    right=r"(scale|root|divided|sqrt|factor)",
    wrong=r"mask|window|causal",
)
class ScaleOfTheWidth(Port):
    def scale(self) -> float:
        return float(self.config.width**-0.5)


@ATTENTION.bug(
    "huggingface/transformers#38290",
    "the scale is applied twice: to the queries and by the kernel",
    at=PROBS,
    right=r"(twice|scale|root|divided|sqrt|factor)",
    wrong=r"mask|window|causal",
)
class ScaledTwice(Port):
    def scale(self) -> float:
        return 1.0 / self.config.head_dim


@ATTENTION.bug(
    "AI-Hypercomputer/maxtext#1370",
    "scores are multiplied by the root of the head's size where they should be divided",
    at=PROBS,
    right=r"(multipl|scale|root|sqrt|factor)",
    wrong=r"mask|window|causal",
)
class ScaleReversed(Port):
    def scale(self) -> float:
        return float(self.config.head_dim**0.5)


@ATTENTION.bug(
    "flashinfer-ai/flashinfer#3716",
    "lanes beyond the last key count in the softmax's sum, each as a score of 0",
    at=PROBS,
    right=r"(sum|mass|denominator|total).*(more|extra|less|\d)|lanes?|extra (mass|keys?)|padding",
    wrong=r"scale|window",
)
class LanesInTheSum(Port):
    def softmax(self, z: Array) -> Array:
        lanes = -z.shape[-1] % 16 or 16
        largest = np.maximum(z.max(axis=-1, keepdims=True), 0)
        e = np.exp(z - largest)
        return e / (e.sum(axis=-1, keepdims=True) + lanes * np.exp(-largest))


@ATTENTION.bug(
    "labmlai/annotated_deep_learning_paper_implementations#282 nerdai/llms-from-scratch-rs#30",
    "probabilities are normalized over queries: the softmax runs along the wrong axis",
    at=PROBS,
    right=r"axis|quer|column|along",
    wrong=r"scale|window",
)
class SoftmaxOverQueries(Port):
    def softmax(self, z: Array) -> Array:
        e = np.exp(z - np.where(np.isneginf(z), -np.inf, z).max(axis=0, keepdims=True))
        e = np.where(np.isnan(e), 0, e)
        total = e.sum(axis=0, keepdims=True)
        return e / np.where(total == 0, 1, total)


# -- right


@ATTENTION.rightly("the scale multiplies the queries")
class ScaledQueries(Port):
    def attend(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        hidden = ~self.visible(len(q), len(k))[:, None]
        s = self.scores(q * F(self.scale()), k)
        p = self.softmax(np.where(hidden, F(-np.inf), s))
        return s / F(self.scale()), p, np.einsum("nhm,mhd->nhd", p, v).reshape(len(q), -1)


@ATTENTION.rightly("a running maximum and sum, four keys at a time, with powers of 2")
class RunningSoftmax(Port):
    def softmax(self, z: Array) -> Array:
        largest = np.full((*z.shape[:-1], 1), -1e30, F)
        total = np.zeros_like(largest)
        for start in range(0, z.shape[-1], 4):
            part = z[..., start : start + 4]
            before, largest = largest, np.maximum(largest, part.max(axis=-1, keepdims=True))
            total = total * np.exp(before - largest) + np.exp(part - largest).sum(axis=-1, keepdims=True)
        return np.exp2((z - largest) * F(np.log2(np.e))) / total


@ATTENTION.rightly("key heads are shared by indexing, head by head")
class HeadsByIndex(Port):
    def shared(self, x: Array) -> Array:
        group = self.config.n_heads // self.config.n_kv_heads
        return x[:, np.arange(self.config.n_heads) // group]
