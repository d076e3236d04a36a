"""Reported faults of the activation, residual sums, the order of blocks, and the head."""

from __future__ import annotations

import numpy as np

from llama_ckpt.judging.to_precision import to_bfloat16
from llama_ckpt.mutants.real.port import Array, Port
from llama_ckpt.mutants.real.record import Family

__all__ = ["STEPS"]

F = np.float32
STEPS = Family("activation, residual, blocks, head")


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
    right=r"padded|vocabulary",
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


@STEPS.rightly("SiLU by tanh")
class SiluByTanh(Port):
    def activation(self, gate: Array) -> Array:
        return gate * (F(0.5) * (1 + np.tanh(F(0.5) * gate)))


@STEPS.rightly("the branch is added to the residual by parts")
class AddedByParts(Port):
    def add(self, x: Array, branch: Array, block: str) -> Array:
        return (x * F(0.5) + branch) + x * F(0.5)
