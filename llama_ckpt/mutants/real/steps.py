"""Reported faults of norms, activation, residual sums, the order of blocks, and the head."""

from __future__ import annotations

import numpy as np

from llama_ckpt.judging.to_precision import to_bfloat16, to_float16
from llama_ckpt.mutants.real.port import Array, Port
from llama_ckpt.mutants.real.record import Family

__all__ = ["STEPS"]

F = np.float32
STEPS = Family("norms, activation, residual, blocks, head")
NORM = "blk.0.attn_norm"


@STEPS.bug(
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


@STEPS.bug(
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


@STEPS.bug(
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


@STEPS.bug(
    "Blaizzy/mlx-vlm#2114 vllm-project/vllm#31464",
    "the norm's weight is taken as 1 + w, as Gemma has it",
    at=NORM,
    right=r"1 ?\+ ?w|one plus|plus 1|\+ 1",
    wrong=r"epsilon|another norm",
)
class WeightPlusOne(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        return super().norm(x, 1 + weight)


@STEPS.bug(
    "ggml-org/llama.cpp#173",
    "LayerNorm stands for RMSNorm: the mean is subtracted",
    at=NORM,
    right=r"mean.*subtract|subtract.*mean|LayerNorm|centred|centered",
    wrong=r"epsilon",
)
class MeanSubtracted(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        return super().norm(x - x.mean(-1, keepdims=True, dtype=F), weight)


@STEPS.bug(
    "mosaicml/llm-foundry#371",
    "the norm divides by the reciprocal root: it multiplies by the root",
    at=NORM,
    right=r"multipl|reciprocal|instead of divid|inverse|rsqrt",
    wrong=r"epsilon|mean is subtract",
)
class NormMultiplies(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        return x * np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=F) + F(self.config.rms_norm_eps)) * weight


@STEPS.bug(
    "bkitano/llama-from-scratch#4",
    "the norm's mean is taken over all rows at once",
    at=NORM,
    right=r"(all|whole|every).*(rows?|tokens?|prompt)|(rows?|tokens?).*(together|at once|one mean|same)",
    wrong=r"epsilon|subtract",
)
class NormOverAllRows(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        return x / np.sqrt(np.mean(x * x, dtype=F) + F(self.config.rms_norm_eps)) * weight


@STEPS.bug(
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


@STEPS.bug(
    "NVIDIA/TensorRT-Model-Connect#177 THUDM/slime#1825",
    "the other family's activation: GELU by tanh where SiLU belongs",
    at="blk.0.ffn_swiglu",
    right=r"GELU",
    wrong=r"sigmoid alone|ReLU\b|exchanged",
)
class GeluByTanh(Port):
    def activation(self, gate: Array) -> Array:
        inner = F(np.sqrt(2 / np.pi)) * (gate + F(0.044715) * gate**3)
        return F(0.5) * gate * (1 + np.tanh(inner))


@STEPS.bug(
    "mirage-project/mirage#722",
    "four ranks each add the residual before the sum over ranks: it counts four times",
    at="blk.0.ffn_inp",
    right=r"(four|4) times|times 4|× ?4|4 ×|coefficient.*4",
    wrong=r"twice|two times",
)
class ResidualOfFourRanks(Port):
    def add(self, x: Array, branch: Array, block: str) -> Array:
        return x + x + x + x + branch


@STEPS.bug(
    "naklecha/llama3-from-scratch#28 vllm-project/vllm#26164",
    "the residual is taken behind the norm",
    at="blk.0.ffn_inp",
    right=r"norm",
    wrong=r"twice|missing|another block",
)
class ResidualOfTheNorm(Port):
    def add(self, x: Array, branch: Array, block: str) -> Array:
        name = "attn_norm" if f"{block}ffn_inp" not in self.seen else "ffn_norm"
        return self.seen[block + name] + branch


@STEPS.bug(
    "huggingface/transformers#24381",
    "the second pipeline stage has the layers of the first one",
    at="blk.6.attn_norm blk.16.attn_norm",
    right=r"(weights?|layers?|blocks?) .*(of|from) (block|layer|blk\.)? ?0|first stage|blk\.0|block 0",
    wrong=r"gain|twice",
)
class SecondStageIsTheFirst(Port):
    def load(self) -> None:
        half = self.config.n_layers // 2
        for name in list(self.w):
            if name.startswith("blk."):
                number, rest = name.removeprefix("blk.").split(".", 1)
                self.w[name] = self.w[f"blk.{int(number) % half}.{rest}"]


@STEPS.bug(
    "arcee-ai/mergekit#143",
    "blocks are sorted by their names as text: 0, 1, 10, 11, 2",
    at="blk.2.attn_norm",
    right=r"(block|layer|blk\.) ?(10|\d\d)|order",
    wrong=r"gain|twice",
)
class BlocksSortedAsText(Port):
    def load(self) -> None:
        order = sorted(range(self.config.n_layers), key=str)
        whole = dict(self.w)
        for name in list(self.w):
            if name.startswith("blk."):
                number, rest = name.removeprefix("blk.").split(".", 1)
                self.w[name] = whole[f"blk.{order[int(number)]}.{rest}"]


@STEPS.bug(
    "awslabs/keys_values#139 PaddlePaddle/PaddleNLP#7615",
    "the last norm is left out before the head",
    at="output_norm",
    right=r"norm.*(left out|missing|not applied|forgotten|skipped)|(left out|without|no|missing).*norm",
    wrong=r"gain of|epsilon",
)
class LastNormLeftOut(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        last = weight is self.w["output_norm.weight"]
        return x if last else super().norm(x, weight)


@STEPS.bug(
    "Comfy-Org/ComfyUI#15048",
    "logits are made with the token embedding although there is a head of its own",
    at="logits",
    right=r"embedding|tied|token_embd",
    wrong=r"transpos|norm",
)
class HeadIsTheEmbedding(Port):
    def head(self, x: Array) -> Array:
        return self.product(x, "token_embd")


@STEPS.bug(
    "mirage-project/mirage#751",
    "the head is padded to a multiple of 128 with rows of zeros: logits of tokens that are not there",
    at="logits",
    right=r"vocab|padd|columns?|tokens",
    wrong=r"transpos|norm",
)
class PaddedVocabulary(Port):
    def head(self, x: Array) -> Array:
        logits = super().head(x)
        return np.pad(logits, ((0, 0), (0, 128 - logits.shape[1] % 128)))


class InBfloat16(Port):
    """Every value that is kept is rounded to bfloat16, sums in float32."""

    def keep(self, name: str, x: Array) -> Array:
        return super().keep(name, to_bfloat16(np.asarray(x, F)))


@STEPS.bug(
    "ROCm/aiter#5151 1bit-MONSTER/1bit-MONSTER#640",
    "sums of the residual are cut to bfloat16, not rounded: all errors point one way",
    at="blk.0.ffn_inp",
    right=r"trunc|cut (to|off)|not rounded|toward zero|round.*down",
    wrong=r"epsilon|twice",
    dtype="bfloat16",
)
class ResidualTruncated(InBfloat16):
    def keep(self, name: str, x: Array) -> Array:
        if name.endswith(("ffn_inp", ".out")):
            cut = (np.ascontiguousarray(x, F).view(np.uint32) & np.uint32(0xFFFF0000)).view(F)
            return Port.keep(self, name, cut)
        return super().keep(name, x)


# -- right


@STEPS.rightly("bfloat16 throughout, rounded", dtype="bfloat16")
class RoundedToBfloat16(InBfloat16):
    pass


@STEPS.rightly("the norm multiplies by the reciprocal root, SiLU by tanh")
class OtherFormulas(Port):
    def norm(self, x: Array, weight: Array) -> Array:
        square = np.einsum("ni,ni->n", x, x)[:, None] / F(x.shape[-1])
        return x * (1 / np.sqrt(square + F(self.config.rms_norm_eps))) * weight

    def activation(self, gate: Array) -> Array:
        return gate * (F(0.5) * (1 + np.tanh(F(0.5) * gate)))


@STEPS.rightly("the branch is added to the residual by parts")
class AddedByParts(Port):
    def add(self, x: Array, branch: Array, block: str) -> Array:
        return (x * F(0.5) + branch) + x * F(0.5)
