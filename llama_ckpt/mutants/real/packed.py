"""Reported faults of quantized weights, over the port's own decoders of blocks, and the right decoders."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.mutants.real.port import Array, Port
from llama_ckpt.mutants.real.record import Family

__all__ = ["PACKED", "Decoding"]

F = np.float32
PACKED = Family("quantized weights")


def halves(raw: Array) -> Array:
    """Float16 numbers from their bytes."""
    return np.ascontiguousarray(raw).view("<f2").astype(F)


class Decoding(Port):
    """Decodes what is in blocks itself, so that a fault of the decoder is an override.

    Attributes:
        only: which matrices a fault concerns, a part of their names; a method for each type of blocks, of
            the type's name in small letters.
    """

    only: ClassVar[str] = "blk."

    def load(self) -> None:
        file = open_gguf(self.model)
        for name, info in file.tensors.items():
            decode = getattr(self, info.type.name.lower(), None)
            if decode is not None and self.only in name:
                self.w[name] = decode(file.raw(name)).reshape(info.shape).astype(F)

    def q8_0(self, raw: Array) -> Array:
        """Blocks of 32: a scale, 32 signed bytes."""
        blocks = raw.reshape(-1, 34)
        return halves(blocks[:, :2]) * blocks[:, 2:].view(np.int8)

    def nibbles(self, packed: Array) -> Array:
        """`[blocks, 16]` bytes: the low ones are elements 0 to 15, the high ones 16 to 31."""
        return np.concatenate([packed & 15, packed >> 4], axis=1).astype(F)

    def q4_0(self, raw: Array) -> Array:
        """Blocks of 32: a scale, 32 nibbles around 8."""
        blocks = raw.reshape(-1, 18)
        return halves(blocks[:, :2]) * (self.nibbles(blocks[:, 2:]) - self.zero())

    def zero(self) -> float:
        """What a nibble of 0 is below."""
        return 8

    def q4_1(self, raw: Array) -> Array:
        """Blocks of 32: a scale, a minimum, 32 nibbles."""
        blocks = raw.reshape(-1, 20)
        return halves(blocks[:, :2]) * self.nibbles(blocks[:, 4:]) + halves(blocks[:, 2:4])

    def sixes(self, packed: Array) -> tuple[Array, Array]:
        """The eight scales and minima of `[blocks, 12]` bytes, six bits each."""
        a, b, c = np.split(packed, 3, axis=1)
        scales = np.concatenate([a & 63, (c & 15) | (a >> 6) << 4], axis=1)
        minima = np.concatenate([b & 63, (c >> 4) | (b >> 6) << 4], axis=1)
        return scales.astype(F), minima.astype(F)

    def q4_k(self, raw: Array) -> Array:
        """Blocks of 256 in eight parts of 32, with a scale and a minimum each."""
        blocks = raw.reshape(-1, 144)
        scales, minima = self.sixes(blocks[:, 4:16])
        packed = blocks[:, 16:].reshape(-1, 4, 1, 32)
        parts = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32).astype(F)
        d, least = halves(blocks[:, :2]), halves(blocks[:, 2:4])
        return (d * scales)[:, :, None] * parts - (least * minima)[:, :, None]

    def q6_k(self, raw: Array) -> Array:
        """Blocks of 256 in sixteen parts of 16, with a signed scale each."""
        blocks = raw.reshape(-1, 210)
        low, high = blocks[:, :128].reshape(-1, 2, 2, 32), blocks[:, 128:192].reshape(-1, 2, 1, 32)
        fours = np.concatenate([low & 15, low >> 4], axis=2)
        twos = (high >> np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]) & 3
        parts = (fours | twos << 4).reshape(-1, 16, 16).astype(F) - self.six_bit_zero()
        scales = blocks[:, 192:208].view(np.int8).astype(F)
        return (halves(blocks[:, 208:]) * scales)[:, :, None] * parts

    def six_bit_zero(self) -> float:
        """The same of six bits."""
        return 32


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


@PACKED.rightly("every matrix is decoded by the port itself", models=("q8_0", "q4_0", "q4_1", "q4_k_m"))
class DecodedHere(Decoding):
    only = ""
