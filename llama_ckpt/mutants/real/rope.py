"""Reported faults of RoPE's frequencies and pairs, and right ways to turn otherwise."""

from __future__ import annotations

import numpy as np

from llama_ckpt.judging.to_precision import to_bfloat16, to_float16
from llama_ckpt.mutants.real.port import Array, Port
from llama_ckpt.mutants.real.record import Family, Prompt

__all__ = ["ROPE"]

F = np.float32
ROPE = Family("RoPE: frequencies and pairs")
FIRST = "blk.0.q_rope"
PAIRING = r"halves|half of|\(i, i ?\+ ?d/2\)"


def interleaved(w: Array, n_heads: int) -> Array:
    """Rows of a matrix whose heads are in halves, laid as neighbours."""
    return w.reshape(n_heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def halved(w: Array, n_heads: int) -> Array:
    """The other way: rows of neighbours laid in halves, as Hugging Face's checkpoints have them."""
    return w.reshape(n_heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


class Halves(Port):
    """Turns pairs (i, i + d/2)."""

    def rope(self, x: Array, positions: Array, which: str) -> Array:
        angles = self.angles(positions)
        cos, sin = np.cos(angles).astype(F)[:, None], np.sin(angles).astype(F)[:, None]
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


@ROPE.bug(
    "huggingface/candle#3410 huggingface/candle#3948",
    "turns the other convention's pairs: halves of a head where the file's neighbours belong together",
    at=FIRST,
    right=PAIRING,
    wrong=r"theta|permut",
)
class PairsInHalves(Halves):
    pass


@ROPE.bug(
    "ooples/AiDotNet#2074 huggingface/nanotron#427 NeuraLegion/shainet#111",
    "turns neighbours although q and k come in a checkpoint's half-split rows",
    at=FIRST,
    right=r"Hugging ?Face|halves|half-split|half split",
    wrong=r"theta|another block|transpos",
)
class RowsOfHuggingFace(Port):
    def load(self) -> None:
        c = self.config
        for name, w in self.w.items():
            for part, n_heads in (("attn_q", c.n_heads), ("attn_k", c.n_kv_heads)):
                if name.endswith(f"{part}.weight"):
                    self.w[name] = halved(w, n_heads)


@ROPE.bug(
    "ggml-org/llama.cpp#3364 huggingface/transformers#31788",
    "the rows of k are laid for as many heads as there are query heads, not key heads",
    at="blk.0.k",
    right=r"n_heads|query heads|number of heads|heads? of (half|\d+)|permut|rows? (are|is) .*order",
    wrong=r"theta|another block|transpos",
    models=("grouped",),
)
class KeysLaidForQueryHeads(Port):
    def load(self) -> None:
        c = self.config
        for name, w in self.w.items():
            if name.endswith("attn_k.weight"):
                self.w[name] = interleaved(halved(w, c.n_kv_heads), c.n_heads)


@ROPE.bug(
    "NVIDIA/TensorRT-LLM#785 langchain-ai/langchain#20710",
    "theta is not handed on: 10,000 is taken where the file has another",
    at=FIRST,
    right=r"theta (is|of|=|was|taken)? ?(10,?000|1e\+?0?4)|theta.*10,?000",
    wrong=r"scaling|positions",
    models=("grouped",),
)
class ThetaTenThousand(Port):
    def frequencies(self) -> Array:
        d = self.config.head_dim
        return 10000.0 ** (-np.arange(0, d, 2, dtype=np.float64) / d)


@ROPE.bug(
    "vllm-project/vllm#1436 vllm-project/vllm#1956 Blaizzy/mlx-vlm#1709",
    "the file's linear scaling is parsed and never used",
    at=FIRST,
    right=r"scal(ing|ed).*(ignored|missing|left out|not applied|1\b)|without .*scaling"
    r"|(positions?|frequencies) .*(4 times|× ?4|times 4|multiplied by 4)",
    wrong=r"theta",
    models=("linear",),
)
class LinearScalingIgnored(Port):
    def frequencies(self) -> Array:
        return super().frequencies() * self.config.rope_scale


@ROPE.bug(
    "lablup/mlxcel#1355 felafax/felafax#59 jmaczan/tiny-vllm#1 sbryngelson/ANEForge#58",
    "Llama 3's factors of slow frequencies are left out",
    at=FIRST,
    right=r"llama ?-?3.*(ignored|missing|left out|not applied|without)|(ignored|missing|without|left out).*"
    r"(llama ?-?3|rope_freqs|factors|scaling)",
    wrong=r"theta",
    models=("llama3",),
)
class Llama3FactorsIgnored(Port):
    def frequencies(self) -> Array:
        c = self.config
        return super().frequencies() * np.asarray(c.rope_factors)


@ROPE.bug(
    "huggingface/text-generation-inference#816",
    "dynamic scaling by 2 divides positions as well, where only theta should grow, and only far out",
    at=FIRST,
    right=r"(divided by 2|linear.* 2|\b0\.5|half|halved)",
    wrong=r"theta is",
)
class DynamicScalingDivides(Port):
    def frequencies(self) -> Array:
        return super().frequencies() / 2


@ROPE.bug(
    "turboderp-org/exllamav2#704 oobabooga/textgen#3897",
    "NTK scaling is applied to a model that has none: theta grows by alpha to the power of d / (d - 2)",
    at=FIRST,
    right=r"theta|NTK",
    wrong=r"linear|positions? ",
)
class NtkAlpha(Port):
    def frequencies(self) -> Array:
        d = self.config.head_dim
        theta = self.config.rope_theta * 2.5 ** (d / (d - 2))
        return theta ** (-np.arange(0, d, 2, dtype=np.float64) / d)


@ROPE.bug(
    "mlfoundations/open_lm#4",
    "the head's number stands for the position: RoPE runs along the axis of heads",
    at=FIRST,
    right=r"(number of the head|head's number|axis of heads|heads? .*position|position.*heads?)",
    wrong=r"theta|scaling",
)
class PositionsAreHeads(Port):
    def rope(self, x: Array, positions: Array, which: str) -> Array:
        turned = super().rope(x.swapaxes(0, 1), np.arange(x.shape[1]), which)
        return turned.swapaxes(0, 1)


@ROPE.bug(
    "huggingface/transformers#25681 huggingface/transformers#29285 KellerJordan/modded-nanogpt#39",
    "the table of cosines and sines is kept in bfloat16",
    at=FIRST,
    right=r"(table|cos|sin).*bfloat16|bfloat16.*(table|cos|sin)",
    wrong=r"theta|positions? (are|is|were|kept|in)\b|frequencies (are|rounded|in)\b",
)
class TableInBfloat16(Port):
    def rope(self, x: Array, positions: Array, which: str) -> Array:
        angles = self.angles(positions)
        cos, sin = to_bfloat16(np.cos(angles))[:, None], to_bfloat16(np.sin(angles))[:, None]
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape).astype(F)


@ROPE.bug(
    "NVIDIA-NeMo/Automodel#2549 huggingface/transformers#29496",
    "a cast of the whole model rounds the inverse frequencies to bfloat16",
    at=FIRST,
    right=r"frequenc.*bfloat16|bfloat16.*frequenc",
    wrong=r"theta|positions? (are|is|in)\b|(table|cosines).*bfloat16",
)
class FrequenciesInBfloat16(Port):
    def frequencies(self) -> Array:
        return to_bfloat16(super().frequencies().astype(F)).astype(np.float64)


@ROPE.bug(
    "deepspeedai/Megatron-DeepSpeed#206 EleutherAI/gpt-neox#1003",
    "angles are rounded to float16 before cosine and sine are taken",
    at=FIRST,
    right=r"angles?.*float16|float16.*angles?",
    wrong=r"theta|bfloat16|table",
)
class AnglesInFloat16(Port):
    def angles(self, positions: Array) -> Array:
        return to_float16(super().angles(positions).astype(F)).astype(np.float64)


@ROPE.bug(
    "ngxson/llama.cpp#59 trymirai/lalamo#268",
    "the sine's sign is turned round: RoPE turns backwards",
    at=FIRST,
    right=r"(sign|backward|negative|other way|opposite|reverse|minus)",
    wrong=r"theta|scaling",
)
class TurnsBackwards(Port):
    def frequencies(self) -> Array:
        return -super().frequencies()


# -- right


@ROPE.rightly("pairs in halves, over rows laid in halves, and back")
class HalvesOfHalves(Halves):
    def rope(self, x: Array, positions: Array, which: str) -> Array:
        shape = x.shape
        split = x.reshape(*shape[:-1], -1, 2).swapaxes(-1, -2).reshape(shape)
        turned = super().rope(split, positions, which)
        return turned.reshape(*shape[:-1], 2, -1).swapaxes(-1, -2).reshape(shape)


@ROPE.rightly("angles in float32, as nearly everybody has them", prompts=(Prompt(9), Prompt(300)))
class AnglesInFloat32(Port):
    def angles(self, positions: Array) -> Array:
        return np.asarray(positions, F)[:, None] * self.frequencies().astype(F)


@ROPE.rightly("pairs as complex numbers, times powers of e", models=("grouped", "linear", "llama3"))
class ComplexPairs(Port):
    def rope(self, x: Array, positions: Array, which: str) -> Array:
        turns = np.exp(1j * self.angles(positions)).astype(np.complex64)[:, None]
        pairs = np.ascontiguousarray(x, F).view(np.complex64)
        return np.ascontiguousarray(pairs * turns).view(F)
