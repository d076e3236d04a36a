"""Reported faults that were collected when the identifiers were finished: their figures stand apart."""

from __future__ import annotations

import numpy as np

from llama_ckpt.mutants.real.decoding import Decoding
from llama_ckpt.mutants.real.port import Array, Port
from llama_ckpt.mutants.real.record import Family, Prompt

__all__ = ["LATE"]

F = np.float32
LATE = Family("collected later", late=True)


@LATE.bug(
    "vllm-project/vllm-gguf-plugin#103",
    "both ranks load the first rank's rows of q, k, v, gate and up",
    at="blk.0.q",
    right=r"(heads?|outputs?|rows?|features?) .*(is|are) .*\d",
    wrong=r"transpos|another block|zero",
)
class SameShardOnBothRanks(Port):
    def load(self) -> None:
        for name, w in self.w.items():
            if name.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight", "gate.weight", "up.weight")):
                self.w[name] = np.concatenate([np.split(w, 2)[0]] * 2)


@LATE.bug(
    "ggml-org/llama.cpp#25690",
    "of each block of 256 columns the kernel sums the first half only",
    at="blk.0.q",
    right=r"(columns?|inputs?|half).*(12[78]|missing|left out|not summed|only|alone)",
    wrong=r"transpos|scale|zero point",
    models=("q4_k_m",),
)
class HalfOfEachBlock(Port):
    def product(self, x: Array, name: str) -> Array:
        kept = np.where(np.arange(x.shape[1]) % 256 < 128, x, F(0))
        return super().product(kept if name.startswith("blk.") else x, name)


@LATE.bug(
    "vllm-project/vllm#48623",
    "YaRN's attention factor, 1.28, is multiplied into cosine and sine where it should be 1",
    at="blk.0.q_rope",
    right=r"1\.277|1\.28|(gain|factor|times|multipl|longer|larger)",
    wrong=r"theta|positions? (are|is)|bfloat16",
)
class YarnFactor(Port):
    def rope(self, x: Array, positions: Array, which: str) -> Array:
        return super().rope(x, positions, which) * F(1.2773)


@LATE.bug(
    "TransformerLensOrg/TransformerLens#27",
    "scores are divided by the block's number plus one as well",
    at="blk.1.attn_probs",
    right=r"(scale|divided|factor|times|half|root)",
    wrong=r"mask|window|sum",
)
class ScaledByTheBlock(Port):
    def scale(self) -> float:
        return super().scale() / (1 + sum(len(keys) > 0 for keys in self.keys[1:]))


@LATE.bug(
    "TensorAuto/OpenTau#179 hkproj/pytorch-paligemma#3",
    "the embedding is multiplied by the root of the width, as Gemma's is",
    at="embd",
    right=r"(gain|times|multipl|root|scaled|factor|\b8\b)",
    wrong=r"another|rounded",
)
class EmbeddingTimesRoot(Port):
    def embed(self, ids: Array) -> Array:
        return super().embed(ids) * F(self.config.width**0.5)


@LATE.bug(
    "paiml/aprender#1621",
    "the fifth bits of Q5_0 go to elements in pairs where bit i belongs to element i",
    at="blk.0.q",
    right=r"fifth|high bit|5th|bits?\b",
    wrong=r"transpos|zero point|another block",
    models=("q5_0",),
)
class FifthBitsInPairs(Decoding):
    def fifth_bits(self, packed: Array) -> Array:
        return super().fifth_bits(packed).reshape(-1, 16, 2).swapaxes(1, 2).reshape(-1, 32)


@LATE.bug(
    "pie-project/pie#491",
    "zero points are unpacked without the order 0 2 4 6 1 3 5 7: each of eight outputs has another's",
    at="blk.0.q",
    right=r"zero|minim|offset",
    wrong=r"transpos|another block",
    models=("q4_1",),
)
class ZeroPointsInterleaved(Decoding):
    def q4_1(self, raw: Array) -> Array:
        mixed = raw.reshape(-1, 8, raw.shape[1] // 20, 20).copy()
        mixed[..., 2:4] = mixed[:, [0, 2, 4, 6, 1, 3, 5, 7], :, 2:4]
        return super().q4_1(mixed.reshape(raw.shape))


@LATE.bug(
    "kekzl/imp#1282",
    "a tied head is said to be tied and stays empty: every logit is 0",
    at="logits",
    right=r"zero|\b0\b|empty|constant|all equal",
    wrong=r"transpos|norm",
    models=("tied",),
)
class TiedHeadIsEmpty(Port):
    def head(self, x: Array) -> Array:
        return 0 * super().head(x)


@LATE.bug(
    "huggingface/transformers#43429",
    "a tied head is left as it was initialized: random weights",
    at="logits",
    right=r"random|initiali|no (row|matrix)|unrelated|nothing known fits",
    wrong=r"transpos|norm|shifted",
    models=("tied",),
)
class HeadIsRandom(Port):
    def head(self, x: Array) -> Array:
        drawn = np.random.default_rng(7).standard_normal((self.config.vocab_size, self.config.width))
        return x @ (0.02 * drawn.astype(F)).T


@LATE.bug(
    "jsbaan/transformer-from-scratch#6 ajhalthor/Transformer-Neural-Network#4",
    "heads are joined without the transposition: a row's context is that of one head of several tokens",
    at="blk.0.attn_context",
    right=r"transpos|axes|axis|reshape|heads? .*(tokens?|rows?)|order",
    wrong=r"scale|mask",
)
class JoinedWithoutTransposing(Port):
    def attend(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        s, p, c = super().attend(q, k, v)
        return s, p, c.reshape(q.shape).swapaxes(0, 1).reshape(len(q), -1)


@LATE.bug(
    "ml-explore/mlx-lm#767",
    "SiLU is taken of up and multiplied with the gate",
    at="blk.0.ffn_swiglu",
    right=r"(gate|up).*(exchanged|swapped|of up|interchanged|other way)|SiLU.*up",
    wrong=r"GELU|ReLU|sigmoid alone",
)
class SiluOfUp(Port):
    def feed_forward(self, x: Array, b: str) -> Array:
        gate = self.keep(b + "ffn_gate", self.product(x, b + "ffn_gate"))
        up = self.keep(b + "ffn_up", self.product(x, b + "ffn_up"))
        inner = self.keep(b + "ffn_swiglu", self.activation(up) * gate)
        return self.keep(b + "ffn_out", self.product(inner, b + "ffn_down"))


@LATE.bug(
    "GeeeekExplorer/nano-vllm#170",
    "the first block's norm writes into its input: the residual is what is normed and weighted",
    at="blk.0.ffn_inp",
    right=r"norm",
    wrong=r"twice|missing|another block",
)
class NormedInPlace(Port):
    def add(self, x: Array, branch: Array, block: str) -> Array:
        first = block == "blk.0." and "blk.0.ffn_inp" not in self.seen
        return super().add(self.seen["blk.0.attn_norm"] if first else x, branch, block)


@LATE.bug(
    "harvard-edge/cs249r_book#1785",
    "a mask of the other meaning adds -1e9 to every key that may be seen: what scores said is lost",
    at="blk.0.attn_probs",
    right=r"uniform|equal|same (weight|probab)|scores? .*(lost|ignored|no)|scale.*0|mean",
    wrong=r"window|theta",
)
class MaskOfTheOtherMeaning(Port):
    def softmax(self, z: Array) -> Array:
        return super().softmax(np.where(np.isneginf(z), z, z.astype(F) + F(-1e9)))


@LATE.bug(
    "vllm-project/vllm#1496 vllm-project/vllm#1501 huggingface/optimum#1827",
    "a bias that the model does not have is added to q, k and v, uninitialized",
    at="blk.0.q",
    right=r"bias|constant|offset|added",
    wrong=r"transpos|another|scale",
)
class BiasUninitialized(Port):
    def product(self, x: Array, name: str) -> Array:
        out = super().product(x, name)
        if not name.endswith(("attn_q", "attn_k", "attn_v")):
            return out
        drawn = np.random.default_rng(len(name)).standard_normal(out.shape[1])
        return out + (0.05 * drawn).astype(F)


@LATE.bug(
    "1bit-MONSTER/1bit-MONSTER#2479 vllm-project/vllm#42803",
    "the offsets into a fused matrix lack the row's stride: k and v are rows of q",
    at="blk.0.k",
    right=r"wq|attn_q|of q\b",
    wrong=r"transpos|another block",
)
class OffsetsWithoutStride(Port):
    def load(self) -> None:
        for i in range(self.config.n_layers):
            q = self.w[f"blk.{i}.attn_q.weight"]
            for first, part in ((1, "k"), (2, "v")):
                name = f"blk.{i}.attn_{part}.weight"
                n = len(self.w[name])
                self.w[name] = np.roll(q, -first, axis=0)[:n]


@LATE.bug(
    "tenstorrent/tt-mlir#8958",
    "a fusion takes v for k: RoPE turns values, and context is made of keys",
    at="blk.0.k",
    right=r"wv|attn_v|of v\b|k and v|swapped|exchanged",
    wrong=r"transpos|another block",
)
class KeysAndValuesSwapped(Port):
    def qkv(self, x: Array, block: str) -> tuple[Array, Array, Array]:
        q, k, v = super().qkv(x, block)
        return q, v, k


@LATE.bug(
    "NVIDIA-NeMo/Megatron-Bridge#4195 kekzl/imp#81",
    "only the first half of each head is turned, as if the model's rotary were partial",
    at="blk.0.q_rope",
    right=r"first (half|8|32|\d+)|only .*(half|first|features|pairs)|partial",
    wrong=r"theta|scaling",
    prompts=(Prompt(9), Prompt(24, first=50)),
)
class HalfOfTheHead(Port):
    def frequencies(self) -> Array:
        whole = super().frequencies()
        return np.where(np.arange(len(whole)) < len(whole) // 2, whole, 0.0)
