"""The integer fields of ggml's blocks, in torch, before any scale is applied.

`block_formats` computes values; kernels need the integers themselves, made non-negative, and the scales
beside them. Every function takes blocks uint8 [n, block_bytes] (or a part of them) and gives uint8.
The meaning of the fields is that of `block_formats`, and tests hold the two against each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama_ckpt.weights.block_formats import bits_in_order, iq4_integers, planes, scales_and_mins

__all__ = [
    "bytes_of_iq4",
    "bytes_of_q2_k",
    "bytes_of_q3_k",
    "bytes_of_q5_0",
    "bytes_of_q5_1",
    "bytes_of_q5_k",
    "bytes_of_q6_k",
    "iq4_xs_scales",
    "k_scales",
    "nibbles_of_q4",
    "nibbles_of_q4_k",
    "q3_k_scales",
]


def nibbles_of_q4(packed: Tensor) -> Tensor:
    """uint8 [..., 16] → [..., 32]: the low nibbles first."""
    return planes(packed, 4).flatten(-2)


def nibbles_of_q4_k(b: Tensor) -> Tensor:
    """Q4_K: 256 integers of 0 to 15."""
    return planes(b[:, 16:].reshape(-1, 4, 32), 4).flatten(1)


def bytes_of_q5_0(b: Tensor) -> Tensor:
    """Q5_0: q + 16, 32 integers of 0 to 31."""
    return nibbles_of_q4(b[:, 6:]) | (bits_in_order(b[:, 2:6]) << 4)


def bytes_of_q5_1(b: Tensor) -> Tensor:
    """Q5_1: 32 integers of 0 to 31."""
    return nibbles_of_q4(b[:, 8:]) | (bits_in_order(b[:, 4:8]) << 4)


def bytes_of_q5_k(b: Tensor) -> Tensor:
    """Q5_K: 256 integers of 0 to 31."""
    low = planes(b[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return (low | (planes(b[:, 16:48], 1) << 4)).flatten(1)


def bytes_of_q6_k(b: Tensor) -> Tensor:
    """Q6_K: q + 32, 256 integers of 0 to 63."""
    low = planes(b[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    high = planes(b[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    return (low | (high << 4)).flatten(1)


def bytes_of_q2_k(b: Tensor) -> tuple[Tensor, Tensor]:
    """Q2_K: 256 integers of 0 to 3; scale and min of 16 groups as bytes [n, 8, 4]: s0 m0 s1 m1."""
    q = planes(b[:, 16:80].reshape(-1, 2, 32), 2).flatten(1)
    scales = torch.stack((b[:, :16] & 15, b[:, :16] >> 4), dim=-1)
    return q, scales.reshape(-1, 8, 4)


def bytes_of_q3_k(b: Tensor) -> Tensor:
    """Q3_K: q + 4, 256 integers of 0 to 7."""
    q = planes(b[:, 32:96].reshape(-1, 2, 32), 2).flatten(1)
    return q | (planes(b[:, :32], 1).flatten(1) << 2)


def q3_k_scales(b: Tensor) -> Tensor:
    """Q3_K: the 16 scales less 32, as the bytes of int8 [n, 16]."""
    low, high = planes(b[:, 96:104], 4).flatten(1), planes(b[:, 104:108], 2).flatten(1)
    return (low | (high << 4)) - 32  # uint8 wraps around, as two's complement does


def k_scales(b: Tensor) -> Tensor:
    """Q4_K and Q5_K: scale and min of eight groups, uint8 [n, 8, 2]."""
    return torch.stack(scales_and_mins(b[:, 4:16]), dim=-1)


def bytes_of_iq4(nibbles: Tensor) -> Tensor:
    """The IQ4 formats: the value that a nibble stands for, plus 128."""
    return iq4_integers(nibbles).view(torch.uint8) ^ 128


def iq4_xs_scales(b: Tensor) -> Tensor:
    """IQ4_XS: the eight scales less 32, as the bytes of int8 [n, 8]."""
    high = torch.stack([(b[:, 2:4] >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1).flatten(1)
    low = torch.stack((b[:, 4:8] & 15, b[:, 4:8] >> 4), dim=-1).flatten(1)
    return (low | (high << 4)) - 32
