"""ggml's codebook formats IQ1, IQ2 and IQ3 in torch: an index stands for four or eight elements at once.

A group's index looks up its elements' absolute values (or, in IQ1, their values) in a table that the format
shares with every file; signs and scales are beside it. Each function takes blocks uint8 [n, block_bytes] of
256 elements and gives float32 [n, 256], on the device the blocks lie on, in the order of operations of
`gguf.quants.dequantize`, so the bits are the same (a NaN for a NaN).

The tables are `gguf`'s own. A device gets its copy the first time that it needs one, which must not be while
a CUDA graph is captured: `PackedWeight` sees to it.

Source: the block structures of ggml (`ggml-common.h`) and their meaning in `gguf.quants`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from gguf import quants
from torch import Tensor

from llama_ckpt.weights.block_formats import bits_in_order, half

__all__ = ["CODEBOOK_DECODERS", "codebook", "iq3_s_integers"]


def codebook(type: T, device: torch.device) -> Tensor | None:
    """The table of a format on a device, float32 [entries, elements]; None for one that has none."""
    return _table(type, device) if type in CODEBOOK_DECODERS else None


@cache
def _table(type: T, device: torch.device) -> Tensor:
    made: Any = getattr(quants, type.name)
    made.init_grid()
    return torch.from_numpy(np.array(made.grid[0, 0], np.float32)).to(device)


def _entries(indices: Tensor, type: T) -> Tensor:
    """Table entries for indices [n, k]: float32 [n, k, elements]."""
    table = _table(type, indices.device)
    flat = table.index_select(0, indices.reshape(-1).to(torch.int32))
    return flat.view(*indices.shape, table.shape[1])


def _words(packed: Tensor, n_bytes: int) -> Tensor:
    """Little-endian integers of 2 or 4 bytes: uint8 [n, k * n_bytes] → int32 [n, k]."""
    bytes_ = packed.reshape(packed.shape[0], -1, n_bytes).to(torch.int32)
    word = bytes_[..., 0]
    for place in range(1, n_bytes):
        word = word | (bytes_[..., place] << (8 * place))
    return word


def _fields(words: Tensor, step: int, count: int, mask: int) -> Tensor:
    """Fields of each word, `step` bits apart, the lowest first: [n, k] → [n, k, count]."""
    return torch.stack([(words >> (step * place)) & mask for place in range(count)], dim=-1)


def _signed(values: Tensor, negative: Tensor) -> Tensor:
    """Values with their signs turned where the bits are set."""
    return torch.where(negative.view(values.shape) != 0, -values, values)


def _with_parity(seven: Tensor) -> Tensor:
    """Seven sign bits [n, k], and an eighth that makes their number even: bits [n, k, 8]."""
    parity = seven ^ (seven >> 4)
    parity = parity ^ (parity >> 2)
    parity = (parity ^ (parity >> 1)) & 1
    return _fields(seven | (parity << 7), 1, 8, 1)


def _nibbles(packed: Tensor) -> Tensor:
    """uint8 [n, k] → [n, 2 k], low nibble first."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


def _grouped(scale: Tensor, values: Tensor) -> Tensor:
    """Values [n, entries, elements] times scales [n, groups], each for as many entries: [n, 256]."""
    n, groups = scale.shape
    return (scale.unsqueeze(-1) * values.reshape(n, groups, -1)).reshape(n, -1)


def _iq2_xxs(b: Tensor) -> Tensor:
    """Eight groups: four indices of a byte, then four times seven signs and the scale."""
    words = _words(b[:, 2:], 4).reshape(-1, 8, 2)
    scale = half(b[:, :2]) * (0.5 + ((words[..., 1] >> 28) & 15).float()) * 0.25
    indices = b[:, 2:].reshape(-1, 8, 8)[..., :4].flatten(1)
    signs = _with_parity(_fields(words[..., 1], 7, 4, 127))
    return _signed(_grouped(scale, _entries(indices, T.IQ2_XXS)), signs)


def _iq2_xs(b: Tensor) -> Tensor:
    """32 words of a nine-bit index and seven signs; 16 scales of four bits behind them."""
    words = _words(b[:, 2:66], 2)
    scale = half(b[:, :2]) * (0.5 + _nibbles(b[:, 66:74]).float()) * 0.25
    return _signed(_grouped(scale, _entries(words & 511, T.IQ2_XS)), _with_parity(words >> 9))


def _iq2_s(b: Tensor) -> Tensor:
    """32 low bytes of indices, 32 bytes of signs, the indices' high two bits, 16 scales of four bits."""
    high = _fields(b[:, 66:74].to(torch.int32), 2, 4, 3).flatten(1)
    scale = half(b[:, :2]) * (0.5 + _nibbles(b[:, 74:82]).float()) * 0.25
    values = _entries(b[:, 2:34].to(torch.int32) | (high << 8), T.IQ2_S)
    return _signed(_grouped(scale, values), bits_in_order(b[:, 34:66]))


def _iq3_xxs(b: Tensor) -> Tensor:
    """64 indices of a byte, each for four elements; eight words of four times seven signs and a scale."""
    words = _words(b[:, 66:98], 4)
    scale = half(b[:, :2]) * (0.5 + ((words >> 28) & 15).float()) * 0.5
    signs = _with_parity(_fields(words, 7, 4, 127))
    return _signed(_grouped(scale, _entries(b[:, 2:66], T.IQ3_XXS)), signs)


def _iq3_s(b: Tensor) -> Tensor:
    """d · (1 + 2 · scale) · a signed entry."""
    scales, values = iq3_s_integers(b)
    return _grouped(half(b[:, :2]) * scales.float(), values)


def iq3_s_integers(b: Tensor) -> tuple[Tensor, Tensor]:
    """IQ3_S without its d: eight scales uint8 [n, 8], 1 to 31, and entries float32 [n, 256], -15 to 15.

    64 low bytes of indices, their ninth bits, 32 bytes of signs, eight scales of four bits.
    """
    indices = b[:, 2:66].to(torch.int32) | (bits_in_order(b[:, 66:74]).to(torch.int32) << 8)
    values = _entries(indices, T.IQ3_S).flatten(1)
    return 1 + 2 * _nibbles(b[:, 106:110]), _signed(values, bits_in_order(b[:, 74:106]))


def _iq1_s(b: Tensor) -> Tensor:
    """32 low bytes of indices, eight words of four times three high bits, a scale and the shift's sign."""
    words = _words(b[:, 34:50], 2)
    scale = half(b[:, :2]) * (2 * ((words >> 12) & 7) + 1).float()
    shift = torch.where(words & 0x8000 == 0, 0.125, -0.125).unsqueeze(-1)
    high = _fields(words, 3, 4, 7).flatten(1)
    values = _entries(b[:, 2:34].to(torch.int32) | (high << 8), T.IQ1_S)
    return _grouped(scale, values.reshape(-1, 8, 32) + shift)


def _iq1_m(b: Tensor) -> Tensor:
    """As IQ1_S, a shift for each index; the float16 scale is the top bits of the four words of scales."""
    words = _words(b[:, 48:56], 2)
    parts = [((words[:, place] >> 12) & 15) << (4 * place) for place in range(4)]
    bits = parts[0] | parts[1] | parts[2] | parts[3]
    whole = bits.to(torch.int16).view(torch.float16).float().unsqueeze(-1)
    scale = whole * (2 * _fields(words, 3, 4, 7).flatten(1) + 1).float()
    high = _nibbles(b[:, 32:48]).to(torch.int32)
    shift = torch.where(high & 8 == 0, 0.125, -0.125).unsqueeze(-1)
    values = _entries(b[:, :32].to(torch.int32) | ((high & 7) << 8), T.IQ1_M)
    return _grouped(scale, values + shift)


CODEBOOK_DECODERS: Final[Mapping[T, Callable[[Tensor], Tensor]]] = MappingProxyType(
    {
        T.IQ1_S: _iq1_s,
        T.IQ1_M: _iq1_m,
        T.IQ2_XXS: _iq2_xxs,
        T.IQ2_XS: _iq2_xs,
        T.IQ2_S: _iq2_s,
        T.IQ3_XXS: _iq3_xxs,
        T.IQ3_S: _iq3_s,
    }
)
"""Format with a table → function from blocks uint8 [n, block_bytes] to float32 [n, 256]."""
