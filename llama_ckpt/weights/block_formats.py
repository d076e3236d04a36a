"""ggml's formats of scaled integers in torch: what the bytes of a block mean, one function a format.

A row of a quantized weight is a sequence of blocks; a block holds 32 or 256 elements as small
integers `q` that share float16 scales. Each function takes blocks uint8 [n, block_bytes] and gives
float32 [n, elements], on the device the blocks lie on. Every step is one rounded float32 operation,
in the order of `gguf.quants.dequantize`, so the bits are the same (a NaN for a NaN).

No shape depends on data and no constant is copied to the device, so that all of it can be captured
in a CUDA graph. Compiled together by a compiler that contracts `a * b - c` into one operation, the
last bit may differ.

Source: the block structures of ggml (`ggml-common.h`) and their meaning in `gguf.quants`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from gguf import GGMLQuantizationType as T
from torch import Tensor

__all__ = [
    "INTEGER_DECODERS",
    "PLAIN_DTYPES",
    "bits_in_order",
    "half",
    "integers_of_nibbles",
    "iq4_integers",
    "planes",
    "scales_and_mins",
]

PLAIN_DTYPES: Final[Mapping[T, torch.dtype]] = MappingProxyType(
    {T.F32: torch.float32, T.F16: torch.float16, T.BF16: torch.bfloat16}
)
"""File types that are torch's own dtypes."""


def half(block_bytes: Tensor) -> Tensor:
    """Two bytes of each block, [n, 2], as float16 → float32 [n, 1]."""
    aligned = block_bytes.clone(memory_format=torch.contiguous_format)
    return aligned.view(torch.float16).float()


def planes(packed: Tensor, bits: int) -> Tensor:
    """Fields of `bits` bits, uint8 [..., k] → [..., 8 / bits, k]: the lowest bits of all k bytes first."""
    mask = (1 << bits) - 1
    return torch.stack([(packed >> shift) & mask for shift in range(0, 8, bits)], dim=-2)


def bits_in_order(packed: Tensor) -> Tensor:
    """uint8 [n, k] → [n, 8 k]: bit i of byte j becomes element 8 j + i."""
    return torch.stack([(packed >> shift) & 1 for shift in range(8)], dim=-1).flatten(1)


def _q4_0(b: Tensor) -> Tensor:
    """d · (q - 8); d in bytes 0-1, then 16 bytes: low nibbles are elements 0-15, high ones 16-31."""
    q = planes(b[:, 2:], 4).flatten(1)
    return half(b[:, :2]) * (q.float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    """d · q + m."""
    q = planes(b[:, 4:], 4).flatten(1)
    return half(b[:, :2]) * q.float() + half(b[:, 2:4])


def _q5_0(b: Tensor) -> Tensor:
    """d · (q - 16); the fifth bits of the 32 elements in bytes 2-5, in order."""
    q = planes(b[:, 6:], 4).flatten(1) | (bits_in_order(b[:, 2:6]) << 4)
    return half(b[:, :2]) * (q.float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    """d · q + m; the fifth bits in bytes 4-7."""
    q = planes(b[:, 8:], 4).flatten(1) | (bits_in_order(b[:, 4:8]) << 4)
    return half(b[:, :2]) * q.float() + half(b[:, 2:4])


def _q8_0(b: Tensor) -> Tensor:
    """d · q, q signed."""
    return half(b[:, :2]) * b[:, 2:].view(torch.int8).float()


def _q2_k(b: Tensor) -> Tensor:
    """(d · scale) · q - (dmin · min): 16 groups of 16 elements, scale and min a nibble each."""
    scale, minimum = half(b[:, 80:82]) * (b[:, :16] & 15), half(b[:, 82:84]) * (b[:, :16] >> 4)
    q = planes(b[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    return (scale.unsqueeze(-1) * q - minimum.unsqueeze(-1)).flatten(1)


def _q3_k(b: Tensor) -> Tensor:
    """(d · (scale - 32)) · (q - 4 where the mask's bit is clear): 16 groups of 16 elements.

    Scales have 6 bits: of scale 4 r + c, the low four are in byte c or c + 4 (low nibbles first),
    the high two in byte 8 + c, at bit 2 r.
    """
    low, high = planes(b[:, 96:104], 4).flatten(1), planes(b[:, 104:108], 2).flatten(1)
    scale = half(b[:, 108:110]) * ((low | (high << 4)).float() - 32)
    q = planes(b[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    mask = planes(b[:, :32], 1).reshape(-1, 16, 16)
    return (scale.unsqueeze(-1) * (q.float() - ((mask ^ 1) << 2).float())).flatten(1)


def scales_and_mins(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The 6-bit scales and mins of Q4_K and Q5_K: uint8 [n, 12] → two of [n, 8].

    Bytes 0-3 and 4-7 hold scales and mins 0-3 in their low six bits; bytes 8-11 hold the low nibbles
    of scales (low) and mins (high) 4-7, whose high two bits are the top bits of bytes 0-3 and 4-7.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 2) & 48)), dim=1)
    mins = torch.cat((second & 63, (third >> 4) | ((second >> 2) & 48)), dim=1)
    return scales, mins


def _scaled_groups_of_32(b: Tensor, q: Tensor) -> Tensor:
    """(d · scale) · q - (dmin · min), q [n, 8, 32]; header of Q4_K and Q5_K in bytes 0-15."""
    scales, mins = scales_and_mins(b[:, 4:16])
    scale, minimum = half(b[:, :2]) * scales, half(b[:, 2:4]) * mins
    return (scale.unsqueeze(-1) * q - minimum.unsqueeze(-1)).flatten(1)


def _q4_k(b: Tensor) -> Tensor:
    """Eight groups of 32 elements; 32 bytes hold two groups, low nibbles first."""
    return _scaled_groups_of_32(b, planes(b[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32))


def _q5_k(b: Tensor) -> Tensor:
    """As Q4_K, with the fifth bits of group g in bit g of bytes 16-47."""
    low = planes(b[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return _scaled_groups_of_32(b, low | (planes(b[:, 16:48], 1) << 4))


def _q6_k(b: Tensor) -> Tensor:
    """(d · scale) · (q - 32): 16 groups of 16, scales signed bytes; halves of 128 elements."""
    low = planes(b[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    high = planes(b[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    scale = half(b[:, 208:210]) * b[:, 192:208].view(torch.int8)
    q = (low | (high << 4)).float() - 32
    return (scale.unsqueeze(-1) * q.reshape(-1, 16, 16)).flatten(1)


_IQ4_VALUES: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def integers_of_nibbles(nibbles: Tensor, values: tuple[int, ...]) -> Tensor:
    """Nibbles to those of 16 values, from -128 to 127, that they stand for: int8."""
    # As bytes of two integers: a table in a tensor would have to be copied to the device first.
    low, high = (
        int.from_bytes(bytes(value & 255 for value in eight), "little", signed=True)
        for eight in (values[:8], values[8:])
    )
    eight = torch.where(nibbles < 8, low, high)
    return (eight >> ((nibbles & 7) << 3)).to(torch.int8)


def iq4_integers(nibbles: Tensor) -> Tensor:
    """Nibbles of the IQ4 formats to the values they stand for, int8."""
    return integers_of_nibbles(nibbles, _IQ4_VALUES)


def _iq4(nibbles: Tensor) -> Tensor:
    """Nibbles to the values they stand for, float32."""
    return iq4_integers(nibbles).float()


def _iq4_nl(b: Tensor) -> Tensor:
    """d · value of q; layout of Q4_0."""
    return half(b[:, :2]) * _iq4(planes(b[:, 2:], 4).flatten(1))


def _iq4_xs(b: Tensor) -> Tensor:
    """(d · (scale - 32)) · value of q: eight groups of 32 elements.

    Of the 6-bit scale g, the high two bits are bits 2 g of the 16-bit word in bytes 2-3, the low four
    the nibbles of bytes 4-7, low nibble first.
    """
    high = torch.stack([(b[:, 2:4] >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1).flatten(1)
    low = torch.stack((b[:, 4:8] & 15, b[:, 4:8] >> 4), dim=-1).flatten(1)
    scale = half(b[:, :2]) * ((low | (high << 4)).float() - 32)
    q = _iq4(planes(b[:, 8:].reshape(-1, 8, 16), 4).reshape(-1, 8, 32))
    return (scale.unsqueeze(-1) * q).flatten(1)


INTEGER_DECODERS: Final[Mapping[T, Callable[[Tensor], Tensor]]] = MappingProxyType(
    {
        T.Q4_0: _q4_0,
        T.Q4_1: _q4_1,
        T.Q5_0: _q5_0,
        T.Q5_1: _q5_1,
        T.Q8_0: _q8_0,
        T.Q2_K: _q2_k,
        T.Q3_K: _q3_k,
        T.Q4_K: _q4_k,
        T.Q5_K: _q5_k,
        T.Q6_K: _q6_k,
        T.IQ4_NL: _iq4_nl,
        T.IQ4_XS: _iq4_xs,
    }
)
"""Type of scaled integers → function from blocks uint8 [n, block_bytes] to float32 [n, elements]."""
