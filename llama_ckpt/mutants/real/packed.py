"""Reported faults of quantized weights, over the port's own decoders, and these decoders."""

from __future__ import annotations

import numpy as np

from llama_ckpt.mutants.real.decoding import Decoding, halves
from llama_ckpt.mutants.real.port import Array
from llama_ckpt.mutants.real.record import Family

__all__ = ["PACKED"]

F = np.float32
PACKED = Family("quantized weights")
TYPES = ("q8_0", "q4_0", "q4_1", "q5_0", "q4_k_m")


@PACKED.bug(
    "mit-han-lab/llm-awq#324",
    "the zero point is too large by 8, in the feed-forward network only",
    at="blk.0.ffn_gate",
    right=r"zero point|offset|zero is|by 8|minus 8|- ?8",
    wrong=r"another block's|transpos|scale of",
    models=("q4_0",),
)
class ZeroTooLargeByEight(Decoding):
    only = "ffn_"

    def zero(self) -> float:
        return 16


@PACKED.bug(
    "1bit-MONSTER/1bit-MONSTER#572",
    "nibbles are read as two's complement where they are offset by 8",
    at="blk.0.q",
    right=r"two'?s complement|signed nibble|sign",
    wrong=r"another block's|transpos",
    models=("q4_0",),
)
class TwosComplement(Decoding):
    def nibbles(self, packed: Array) -> Array:
        found = super().nibbles(packed)
        return found - 16 * (found >= 8)

    def zero(self) -> float:
        return 0


@PACKED.bug(
    "vllm-project/vllm#38966",
    "zero points of one format are read as the other's: every zero is off by one",
    at="blk.0.q",
    right=r"zero point|offset|zero is|off by (one|1)",
    wrong=r"another block's|transpos",
    models=("q4_0",),
)
class ZeroOffByOne(Decoding):
    def zero(self) -> float:
        return 9


@PACKED.bug(
    "vllm-project/vllm#39705",
    "a tile of 64 columns spans two groups, and takes the first one's scale for both",
    at="blk.0.q",
    right=r"(scale|group).*(neighbour|first|another|wrong|previous|before|of (group|block))|another.*scale",
    wrong=r"transpos|zero point",
    models=("q4_0", "q8_0"),
)
class FirstScaleOfTheTile(Decoding):
    def q4_0(self, raw: Array) -> Array:
        return super().q4_0(self.shared(raw.reshape(-1, 18)))

    def q8_0(self, raw: Array) -> Array:
        return super().q8_0(self.shared(raw.reshape(-1, 34)))

    def shared(self, x: Array) -> Array:
        if x.dtype != np.uint8:
            return super().shared(x)
        blocks = x.copy()
        blocks[1::2, :2] = blocks[::2, :2]
        return blocks


@PACKED.bug(
    "kekzl/imp#722",
    "nibbles are read in pairs, elements 2i and 2i + 1, where low ones are the first half of a block",
    at="blk.0.q",
    right=r"nibbles?.*(pair|interleav|order|2i)|order of .*nibbles|interleav",
    wrong=r"transpos|zero point|scale",
    models=("q4_0", "q4_1"),
)
class NibblesInPairs(Decoding):
    def nibbles(self, packed: Array) -> Array:
        return np.stack([packed & 15, packed >> 4], axis=2).reshape(-1, 32).astype(F)


@PACKED.bug(
    "gittensor-ai-lab/sparkinfer#761",
    "eight nibbles are made signed by one subtraction, so that a negative one borrows from its neighbour",
    at="blk.0.q",
    right=r"borrow|neighbour|off by (one|1)|one (step|level)",
    wrong=r"transpos|zero point",
    models=("q4_0",),
)
class BorrowedFromTheNeighbour(Decoding):
    def nibbles(self, packed: Array) -> Array:
        found = super().nibbles(packed)
        borrowed = np.zeros_like(found)
        borrowed[:, 1:] = (found[:, :-1] < 8) & (np.arange(1, 32) % 4 != 0)
        return found - borrowed


@PACKED.bug(
    "vllm-project/vllm#7374",
    "the groups of columns that were sorted by activation are taken in plain order",
    at="blk.0.q",
    right=r"act-?order|g_idx|(scale|group).*(another|order|wrong|of (group|block))",
    wrong=r"transpos|zero point",
    models=("q4_0",),
)
class ActOrderIgnored(Decoding):
    def q4_0(self, raw: Array) -> Array:
        # A file whose groups lie in plain order, read as if sorted: the same fault, the other way round.
        n = raw.shape[1] // 18
        blocks = raw.reshape(-1, n, 18)
        order = np.random.default_rng(n).permutation(32 * n) // 32
        fours = self.nibbles(blocks[..., 2:].reshape(-1, 16)).reshape(len(blocks), -1) - self.zero()
        return halves(blocks[..., :2])[..., 0][:, order] * fours


@PACKED.bug(
    "1bit-MONSTER/1bit-MONSTER#488",
    "the decoder returns after the first block of 256: the rest of the matrix stays zero",
    at="blk.0.q",
    right=r"zero|first 256|only .*(row|feature)s? 0|never|not written",
    wrong=r"transpos|scale of",
    models=("q4_k_m",),
)
class FirstBlockOnly(Decoding):
    def q4_k(self, raw: Array) -> Array:
        out = super().q4_k(raw)
        out[1:] = 0
        return out

    def q6_k(self, raw: Array) -> Array:
        out = super().q6_k(raw)
        out[1:] = 0
        return out


@PACKED.bug(
    "1bit-MONSTER/1bit-MONSTER#734",
    "of each half of a Q6_K block the first 32 of 128 elements are written, the others stay zero",
    at="blk.2.v",
    right=r"zero|never|not written|first 32|only .*(quarter|32)|(columns?|inputs?).*(missing|left out)",
    wrong=r"transpos|another block",
    models=("q4_k_m",),
)
class QuarterOfSixBits(Decoding):
    def q6_k(self, raw: Array) -> Array:
        out = super().q6_k(raw).reshape(-1, 4, 32).copy()
        out[:, 1:] = 0
        return out


# -- right


@PACKED.rightly(
    "every matrix is decoded by the port itself", models=("q8_0", "q4_0", "q4_1", "q5_0", "q4_k_m")
)
class DecodedHere(Decoding):
    only = ""
