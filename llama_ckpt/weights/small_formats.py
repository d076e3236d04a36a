"""ggml's ternary formats and its four-bit floating-point ones in torch.

TQ1_0 and TQ2_0 hold -1, 0 and 1; MXFP4 and NVFP4 hold 4-bit floating-point numbers, doubled so that they are
integers, with a power of two or an eight-bit float as scale. Each function takes blocks uint8
[n, block_bytes] and gives float32 [n, elements], on the device the blocks lie on, in the order of operations
of `gguf.quants.dequantize`, so the bits are the same (a NaN for a NaN).

Source: the block structures of ggml (`ggml-common.h`) and their meaning in `gguf.quants`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from gguf import GGMLQuantizationType as T
from torch import Tensor

from llama_ckpt.weights.block_formats import half, integers_of_nibbles, planes

__all__ = ["SMALL_DECODERS", "tq1_0_integers", "tq2_0_integers"]

_E2M1: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _trits(packed: Tensor, count: int) -> Tensor:
    """Base-three digits of bytes [n, k], the first one of all first: uint8 [n, count * k].

    A byte is a fraction of 256: times three its whole part is a digit, and what is left goes on.
    """
    digits = [((packed * 3**place).to(torch.int16) * 3) >> 8 for place in range(count)]  # bytes wrap
    return torch.cat(digits, dim=1).to(torch.uint8)


def tq1_0_integers(b: Tensor) -> Tensor:
    """TQ1_0: 256 integers of 0 to 2, uint8: five digits a byte of 32 bytes, then of 16, four of four."""
    return torch.cat((_trits(b[:, :32], 5), _trits(b[:, 32:48], 5), _trits(b[:, 48:52], 4)), dim=1)


def _tq1_0(b: Tensor) -> Tensor:
    """d · (q - 1); d in bytes 52-53."""
    return half(b[:, 52:54]) * (tq1_0_integers(b).float() - 1)


def tq2_0_integers(b: Tensor) -> Tensor:
    """TQ2_0: 256 integers of 0 to 3, two bits each, uint8."""
    return planes(b[:, :64].reshape(-1, 2, 32), 2).flatten(1)


def _tq2_0(b: Tensor) -> Tensor:
    """d · (q - 1); d in bytes 64-65."""
    return half(b[:, 64:66]) * (tq2_0_integers(b).float() - 1)


def _mxfp4(b: Tensor) -> Tensor:
    """Half a power of two, its exponent in byte 0 (below 2 denormal), times 16 low nibbles, 16 high ones."""
    exponent = b[:, :1].to(torch.int32)
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    q = integers_of_nibbles(planes(b[:, 1:], 4).flatten(1), _E2M1)
    return bits.view(torch.float32) * q.float()


def _nvfp4(b: Tensor) -> Tensor:
    """Four groups of 16, low nibbles first; half of each group's scale, an unsigned E4M3, in bytes 0-3."""
    code = b[:, :4].to(torch.int32)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = ((exponent + 120) << 23 | mantissa << 20).view(torch.float32)
    scale = torch.where(exponent == 0, mantissa.float() * 2**-9, normal) * 0.5
    scale = torch.where((code == 0) | (code == 0x7F), 0.0, scale)
    q = integers_of_nibbles(planes(b[:, 4:].reshape(-1, 4, 8), 4).flatten(2), _E2M1)
    return (scale.unsqueeze(-1) * q.float()).flatten(1)


SMALL_DECODERS: Final[Mapping[T, Callable[[Tensor], Tensor]]] = MappingProxyType(
    {T.TQ1_0: _tq1_0, T.TQ2_0: _tq2_0, T.MXFP4: _mxfp4, T.NVFP4: _nvfp4}
)
"""Ternary or floating-point format → function from blocks uint8 [n, block_bytes] to float32 [n, elements]."""
