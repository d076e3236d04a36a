"""The port with decoders of its own for quantized blocks, so that a fault of a decoder is an override."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.mutants.real.port import Array, Port

__all__ = ["Decoding", "halves"]

F = np.float32


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

    def fifth_bits(self, packed: Array) -> Array:
        """`[blocks, 4]` bytes: bit i is the fifth of element i."""
        return np.unpackbits(packed, axis=1, bitorder="little").astype(F)

    def q5_0(self, raw: Array) -> Array:
        """Blocks of 32: a scale, fifth bits, 32 nibbles, around 16."""
        blocks = raw.reshape(-1, 22)
        fives = self.nibbles(blocks[:, 6:]) + 16 * self.fifth_bits(blocks[:, 2:6])
        return halves(blocks[:, :2]) * (fives - 16)

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
