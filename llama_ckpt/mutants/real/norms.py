"""Reported faults of norms, and right ways to take them."""

from __future__ import annotations

import numpy as np

from llama_ckpt.judging.to_precision import to_float16
from llama_ckpt.mutants.real.port import Array, Port
from llama_ckpt.mutants.real.record import Family

__all__ = ["NORMS"]

F = np.float32
NORMS = Family("norms")
NORM = "blk.0.attn_norm"


@NORMS.bug(
    "apache/tvm#15856 PaddlePaddle/FastDeploy#2804",
    "the norm's epsilon is written into the kernel: 1e-6 where the file has 1e-5",
    at=NORM,
    right=r"epsilon|\beps",
    wrong=r"mean|gain",
    models=("embedded",),
)
class EpsilonMillionth(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=F) + F(1e-6)) * weight


@NORMS.bug(
    "paiml/aprender#1606 huggingface/transformers#38025",
    "the norm takes its default epsilon, 1e-5, where the file has 1e-6",
    at=NORM,
    right=r"epsilon|\beps",
    wrong=r"mean|gain",
    models=("grouped",),
)
class EpsilonDefault(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=F) + F(1e-5)) * weight


@NORMS.bug(
    "pytorch/pytorch#133085 nntrainer/nntrainer#3935 meta-llama/llama#1048",
    "the norm's squares are taken and summed in float16",
    at=NORM,
    right=r"float16|half",
    wrong=r"epsilon|bfloat16",
)
class NormInFloat16(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        squares = to_float16(to_float16(x) ** 2)
        mean = to_float16(np.asarray(np.mean(squares, -1, keepdims=True, dtype=F)))
        return x / np.sqrt(mean + F(self.config.rms_norm_eps)) * weight


@NORMS.bug(
    "Blaizzy/mlx-vlm#2114 vllm-project/vllm#31464",
    "the norm's weight is taken as 1 + w, as Gemma has it",
    at=NORM,
    right=r"1 ?\+ ?w|one plus|plus 1|\+ 1",
    wrong=r"epsilon|another norm",
)
class WeightPlusOne(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        return super().norm(x, 1 + weight)


@NORMS.bug(
    "ggml-org/llama.cpp#173",
    "LayerNorm stands for RMSNorm: the mean is subtracted",
    at=NORM,
    right=r"mean.*subtract|subtract.*mean|LayerNorm|centred|centered",
    wrong=r"epsilon",
)
class MeanSubtracted(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        return super().norm(x - x.mean(-1, keepdims=True, dtype=F), weight)


@NORMS.bug(
    "mosaicml/llm-foundry#371",
    "the norm divides by the reciprocal root: it multiplies by the root",
    at=NORM,
    right=r"multipl|reciprocal|instead of divid|inverse|rsqrt",
    wrong=r"epsilon|mean is subtract",
)
class NormMultiplies(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        return x * np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=F) + F(self.config.rms_norm_eps)) * weight


@NORMS.bug(
    "bkitano/llama-from-scratch#4",
    "the norm's mean is taken over all rows at once",
    at=NORM,
    right=r"(all|whole|every).*(rows?|tokens?|prompt)|(rows?|tokens?).*(together|at once|one mean|same)",
    wrong=r"epsilon|subtract",
)
class NormOverAllRows(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        return x / np.sqrt(np.mean(x * x, dtype=F) + F(self.config.rms_norm_eps)) * weight


@NORMS.bug(
    "allenai/OLMo#281",
    "epsilon is added behind the root, not under it",
    at=NORM,
    right=r"epsilon|\beps",
    wrong=r"epsilon (is|of) (0|1e|\d)",
)
class EpsilonBehindTheRoot(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        return (
            x / (np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=F)) + F(self.config.rms_norm_eps)) * weight
        )


# -- right


@NORMS.rightly("the norm multiplies by the reciprocal root, squares summed by einsum")
class ReciprocalRoot(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        square = np.einsum("ni,ni->n", x, x)[:, None] / F(x.shape[-1])
        return x * (1 / np.sqrt(square + F(self.config.rms_norm_eps))) * weight
