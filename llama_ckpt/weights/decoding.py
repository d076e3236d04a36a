"""Blocks of the file made into numbers on the CPU: in pieces that stay in a processor's cache.

The decoders of `decoders` make a dozen arrays as large as the weight on their way; of a piece those never
leave the cache, and what is written to memory is the result alone. The commonest formats have a way of
their own here, which reads whole blocks at once, and large matrices are read by compiled code where there is
any (`compiled_formats`). The bits are the decoders' own, whatever the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from torch import Tensor

from llama_ckpt.weights.compiled_formats import compiled_formats
from llama_ckpt.weights.decoders import BLOCK_DECODERS

__all__ = ["LARGE", "PIECE", "decode_into", "pays"]

PIECE: Final = 1 << 18
"""Elements that are made at a time: a megabyte in float32."""

LARGE: Final = 1 << 22
"""Elements of a matrix that is worth asking for a compiler: no small model has one."""


def pays(raw: Tensor, type: T) -> bool:
    """Whether a weight is large enough for pieces, and lies where they help."""
    block, block_bytes = GGML_QUANT_SIZES[type]
    return raw.device.type == "cpu" and raw.numel() // block_bytes * block > PIECE


def decode_into(raw: Tensor, type: T, out: Tensor) -> None:
    """Write a weight's values.

    Args:
        raw: uint8, contiguous, whole blocks, on the CPU.
        type: their format, one of `BLOCK_DECODERS`.
        out: contiguous, as many elements; in another dtype than float32 each is rounded once.
    """
    large = out.dtype == torch.float32 and out.numel() >= LARGE
    compiled = compiled_formats().get(type) if large else None
    if compiled is not None:
        compiled.write_values(raw, out)
        return
    block, block_bytes = GGML_QUANT_SIZES[type]
    blocks, values = raw.reshape(-1, block_bytes), out.view(-1, block)
    step = max(1, PIECE // block)
    fast = _FAST.get(type) if out.dtype == torch.float32 else None
    way = None if fast is None else fast(min(step, len(blocks)))
    for start in range(0, len(blocks), step):
        some, into = blocks[start : start + step], values[start : start + step]
        if way is None:
            into.copy_(BLOCK_DECODERS[type](some))
        else:
            way(some, into)


_Way = Callable[[Tensor, Tensor], None]


def _scales(blocks: Tensor) -> Tensor:
    """The float16 in the first two bytes of each block, as float32 [n, 1]."""
    words = blocks if blocks.storage_offset() % 2 == 0 else blocks.clone()
    return words.view(torch.float16)[:, :1].float()


def _q8_0(step: int) -> _Way:
    wide = torch.empty(step, 34)

    def way(blocks: Tensor, out: Tensor) -> None:
        values = wide[: len(blocks)]
        values.copy_(blocks.view(torch.int8))  # the scale's bytes as well, which nobody reads
        torch.mul(values[:, 2:], _scales(blocks), out=out)

    return way


def _q4_0(step: int) -> _Way:
    nibbles, wide = torch.empty(step, 18, dtype=torch.uint8), torch.empty(step, 18)

    def way(blocks: Tensor, out: Tensor) -> None:
        few, values, scales = nibbles[: len(blocks)], wide[: len(blocks)], _scales(blocks)
        for half, shift in ((out[:, :16], 0), (out[:, 16:], 4)):
            torch.bitwise_right_shift(blocks, shift, out=few)
            values.copy_(few.bitwise_and_(15)).sub_(8)
            torch.mul(values[:, 2:], scales, out=half)

    return way


_FAST: Final[Mapping[T, Callable[[int], _Way]]] = MappingProxyType({T.Q8_0: _q8_0, T.Q4_0: _q4_0})
"""Formats with a way of their own: given a piece's blocks at most, what writes the values of some blocks."""
