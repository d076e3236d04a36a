"""Weights repacked for kernels: rows of whole 16-byte pieces, scales in planes of their own.

A file keeps quantized weights in blocks, each with its scale inside: 18 bytes for 32 weights (Q4_0), 34, 144,
210. A thread reads fastest 16 bytes at once, at an address that 16 divides; such blocks begin anywhere, so
they would have to be read in twos. So at load each matrix is taken apart once, on its device, into planes,
each with one kind of thing only. No value changes, and bytes hardly do: what a product reads decides how fast
it is. Step 1 of docs/speed_steps.md began with this, step 13 made the integers bytes that `dp2a` multiplies,
and step 15 packed six bits as six (Q4_K_M from 4.37 to 4.09 GB). The planes:

    q       int32 words. Plain types: the row itself. "nibble": 4 words for 32 weights, weight 8 i + n in
            bits 4 n of word i. "byte": two planes of 4 words for 32 weights (weights 0-15, then 16-31),
            one byte each. "six": the lower four bits as "nibble"; then 2 words for 32 weights, with bits 4
            and 5 of two of the words before: of the first one's even weights in bits 8 n and 8 n + 1, its odd
            ones' in the next two, and so on. A stored integer is never negative: it is q + offset.
    scale   for each 32 weights what multiplies them: see `Mode`
    super   for each 256 weights the float16 factors of the K-quants

Why the nibbles of a byte are neighbours: a mask then takes the even weights out of a word as four bytes, and
another mask the odd ones, without a shift (see `row_products.eight`). In the files they are 16 (Q4_0) or 32
(Q4_K) apart.

Why stored integers are never negative: `dp2a` takes a byte without a sign. What was added is taken off the
whole sum once: sum (q - offset) x = sum q x - offset sum x.

Rows are padded with zeros to a multiple of 32, so that no kernel has to check its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final

import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from torch import Tensor

from llama_ckpt.errors import ShapeError
from llama_ckpt.kernels.fields import (
    bytes_of_iq4,
    bytes_of_q2_k,
    bytes_of_q3_k,
    bytes_of_q5_0,
    bytes_of_q5_1,
    bytes_of_q5_k,
    bytes_of_q6_k,
    iq4_xs_scales,
    k_scales,
    nibbles_of_q4,
    nibbles_of_q4_k,
    q3_k_scales,
)
from llama_ckpt.weights.codebook_formats import iq3_s_integers
from llama_ckpt.weights.quants import PackedWeight, Weight
from llama_ckpt.weights.small_formats import tq1_0_integers, tq2_0_integers

__all__ = ["ROW_PADDING", "Layout", "Mode", "Pack", "Planes", "interleaved", "packable", "repack", "stacked"]

# No program takes more rows (`launching.Tile`): whatever the tile, the last program reads rows that are
# there.
ROW_PADDING: Final = 32
GROUP: Final = 32  # weights that share one entry of the scale plane


# The numbers of both enumerations are constants in kernels, which compare them: plain types come first, then
# the modes with one scale for 32 weights, then those with two. Another order would break `PACK <= BFLOAT16`
# and `MODE >= K_PAIR` there.
class Pack(IntEnum):
    """How the integers, or plain numbers, of a row lie in its words."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    NIBBLE = 3
    BYTE = 4
    SIX = 5
    """Six bits, for types whose rows are whole blocks of 256: only then is a row a multiple of 16 bytes."""


class Mode(IntEnum):
    """What the scale plane holds for 32 weights; y is their share of a dot product."""

    NONE = 0
    """Nothing: plain numbers."""
    HALF = 1
    """float16 d; y = d * sum (q - offset) x."""
    PAIR = 2
    """float16 d, m; y = d * sum q x + m * sum x."""
    K_PAIR = 3
    """bytes s, m and super float16 d, e; y = d s * sum q x - e m * sum x."""
    K_TWO = 4
    """int8 s0, s1 for 16 weights each and super float16 d; y = sum_h d s_h * sum (q - offset) x."""
    K_TWO_PAIRS = 5
    """bytes s0, m0, s1, m1 for 16 weights each and super float16 d, e."""


@dataclass(frozen=True)
class Layout:
    """The planes of a file type.

    Attributes:
        pack: how integers lie in words.
        mode: what the scales are.
        offset: what was added to each integer to make it non-negative.
    """

    pack: Pack
    mode: Mode = Mode.NONE
    offset: int = 0

    @property
    def packed(self) -> bool:
        """Whether these are integers with scales, not plain numbers."""
        return self.mode != Mode.NONE

    @property
    def piece(self) -> int:
        """Elements that a thread takes in one step: 16 bytes of plain numbers, or a group."""
        return GROUP if self.packed else 4 if self.pack == Pack.FLOAT32 else 8


@dataclass(frozen=True, eq=False)
class Planes:
    """A weight matrix, or several stacked ones, as kernels read it.

    Attributes:
        layout: how to read it.
        shape: (rows, width), without the padding.
        q: int32 [padded rows, words a row].
        scale: int16 or int32 [padded rows, width / 32]; empty for plain types.
        super: int16 or int32 [padded rows, width / 256]; empty where the type has none.
    """

    layout: Layout
    shape: tuple[int, int]
    q: Tensor
    scale: Tensor
    super: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes on the device: what a product reads."""
        return sum(plane.numel() * plane.element_size() for plane in (self.q, self.scale, self.super))


def packable(weight: Weight) -> bool:
    """Whether the weight's type has planes: not those whose scales no mode holds exactly."""
    return isinstance(weight, Tensor) or weight.type in _PACKED


def repack(weight: Weight) -> Planes:
    """Take a weight apart into planes on its device.

    Raises:
        ShapeError: rows that are not whole groups of 32 weights.
    """
    rows, width = weight.shape
    if width % GROUP:
        raise ShapeError("the width of a weight for kernels", got=width, wanted=f"a multiple of {GROUP}")
    if isinstance(weight, Tensor):
        empty = torch.empty(0, dtype=torch.int32, device=weight.device)
        return Planes(_PLAIN[weight.dtype], (rows, width), _padded(weight).view(torch.int32), empty, empty)
    # Some rows at a time, as taking apart needs several times their bytes. A multiple of the padding, though
    # each part may have any number of rows: only the whole is padded.
    layout, take_apart = _PACKED[weight.type]
    block_bytes = GGML_QUANT_SIZES[weight.type][1]
    step = max(1, _BLOCKS_AT_ONCE * block_bytes // max(1, weight.raw.shape[1]))
    step = -(-step // ROW_PADDING) * ROW_PADDING
    parts = [
        _pieces(layout, take_apart, weight.raw[start : start + step], block_bytes, width)
        for start in range(0, rows, step)
    ]
    q, scale, factors = (_padded(torch.cat(planes)) for planes in zip(*parts, strict=True))
    return Planes(layout, (rows, width), q, scale, factors)


def stacked(weights: tuple[Weight, ...]) -> Weight | None:
    """Matrices under one another as one weight; None where their types differ.

    So q, k and v are one launch instead of three. Mixed files (Q4_K_M) keep v in another type: then they stay
    apart, since a kernel is compiled for one.
    """
    if isinstance(weights[0], Tensor):
        tensors = [w for w in weights if isinstance(w, Tensor) and w.dtype == weights[0].dtype]
        return torch.cat(tensors) if len(tensors) == len(weights) else None
    packed = [w for w in weights if isinstance(w, PackedWeight) and w.type == weights[0].type]
    if len(packed) != len(weights):
        return None
    rows = sum(w.shape[0] for w in packed)
    return PackedWeight(torch.cat([w.raw for w in packed]), packed[0].type, (rows, packed[0].shape[1]))


def interleaved(first: Weight, second: Weight) -> Weight | None:
    """Rows of two matrices of one shape in turn, as one weight; None where their types differ.

    The program that computes row k of gate then has row k of up, too, and SwiGLU needs no kernel of its own
    and no trip through memory: see `fused.gate_up_kernel`.
    """
    rows, width = first.shape
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first.dtype == second.dtype:
        return torch.stack((first, second), dim=1).reshape(2 * rows, width)
    if isinstance(first, PackedWeight) and isinstance(second, PackedWeight) and first.type == second.type:
        raw = torch.stack((first.raw, second.raw), dim=1).reshape(2 * rows, -1)
        return PackedWeight(raw, first.type, (2 * rows, width))
    return None


_BLOCKS_AT_ONCE: Final = 1 << 18  # bounds the temporaries of repacking; a block is 32 or 256 weights


def _padded(plane: Tensor) -> Tensor:
    """Zero rows at the end, up to a multiple of the padding; always contiguous and aligned."""
    # Also a copy where a tensor is a slice of a file's bytes: a load of 16 bytes at any other address is an
    # error that ends the CUDA context.
    missing = -plane.shape[0] % ROW_PADDING
    if missing == 0 and plane.is_contiguous() and plane.data_ptr() % 16 == 0:
        return plane
    return torch.cat((plane, plane.new_zeros(missing, *plane.shape[1:])))


Fields = tuple[Tensor, Tensor, Tensor]
"""Of n blocks: integers uint8 [n, elements], scale bytes [n, groups of 32, b], super bytes [n, b]."""


def _pieces(
    layout: Layout, take_apart: Callable[[Tensor], Fields], raw: Tensor, block_bytes: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The planes of some rows."""
    rows = raw.shape[0]
    integers, scale, factors = take_apart(raw.reshape(-1, block_bytes))
    groups = integers.reshape(rows, width // GROUP, GROUP)
    if layout.pack == Pack.BYTE:
        # All groups' first 16 bytes, then all groups' second: each is one load of a thread, and neighbouring
        # threads' loads stand side by side.
        words = groups.reshape(rows, -1, 2, 16).transpose(1, 2).reshape(rows, -1)
    else:
        # The lower four bits of both; six-bit weights have two more, in words that follow.
        even, odd = groups[..., 0::2], groups[..., 1::2]
        words = ((even & 15) | (odd << 4)).reshape(rows, -1)
        if layout.pack == Pack.SIX:
            words = torch.cat((words, _upper_bits(even, odd).reshape(rows, -1)), dim=1)
    return words.contiguous().view(torch.int32), _integers(scale, rows), _integers(factors, rows)


def _upper_bits(even: Tensor, odd: Tensor) -> Tensor:
    """Bits 4 and 5 of the even and odd weights of groups, uint8 [..., 16] each -> [..., 8]: see `Planes`."""
    # A byte holds four fields of two bits: first word even, first word odd, second word even, second word
    # odd. A shift and a mask then bring the bits of four weights to their place at once: see
    # `row_products.eight`.
    groups = even.shape[:-1]
    fields = torch.stack((even >> 4, odd >> 4), dim=-2).view(*groups, 2, 2, 2, 4)  # [..., parity, j, i, byte]
    first, second, third, fourth = fields.movedim(-4, -2).reshape(*groups, 2, 4, 4).unbind(-2)
    return first | (second << 2) | (third << 4) | (fourth << 6)


def _integers(plane: Tensor, rows: int) -> Tensor:
    """Bytes [..., 2 or 4] of `rows` rows as int16 or int32 [rows, ...]."""
    if plane.shape[-1] == 0:
        return plane.new_empty(rows, 0, dtype=torch.int32)
    dtype = torch.int16 if plane.shape[-1] == 2 else torch.int32
    return plane.reshape(rows, -1).contiguous().view(dtype)


def _none(b: Tensor) -> Tensor:
    return b.new_empty(b.shape[0], 0)


def _each(factor: Tensor) -> Tensor:
    """Bytes [n, b] of blocks of 256 weights, for each of their groups: [n, 8, b]."""
    return factor.unsqueeze(1).expand(-1, 8, -1)


def _iq3_s(b: Tensor) -> Fields:
    scales, values = iq3_s_integers(b)
    return (values + 16).to(torch.uint8), scales.unsqueeze(-1).expand(-1, 8, 2), b[:, :2]


_PLAIN: Final[Mapping[torch.dtype, Layout]] = MappingProxyType(
    {
        torch.float32: Layout(Pack.FLOAT32),
        torch.float16: Layout(Pack.FLOAT16),
        torch.bfloat16: Layout(Pack.BFLOAT16),
    }
)

# Of each type: its layout, and how n blocks [n, bytes of a block] are taken apart. The numbers are those of
# ggml's block structs, e.g. block_q4_0: two bytes of float16 d, then 16 bytes of nibbles. Where a type has no
# super plane, `_none`. Signed bytes (Q8_0) become 0 to 255 by flipping the top bit, which adds 128.
_PACKED: Final[Mapping[T, tuple[Layout, Callable[[Tensor], Fields]]]] = MappingProxyType(
    {
        T.Q4_0: (Layout(Pack.NIBBLE, Mode.HALF, 8), lambda b: (nibbles_of_q4(b[:, 2:]), b[:, :2], _none(b))),
        T.Q4_1: (Layout(Pack.NIBBLE, Mode.PAIR), lambda b: (nibbles_of_q4(b[:, 4:]), b[:, :4], _none(b))),
        T.Q5_0: (Layout(Pack.BYTE, Mode.HALF, 16), lambda b: (bytes_of_q5_0(b), b[:, :2], _none(b))),
        T.Q5_1: (Layout(Pack.BYTE, Mode.PAIR), lambda b: (bytes_of_q5_1(b), b[:, :4], _none(b))),
        T.Q8_0: (Layout(Pack.BYTE, Mode.HALF, 128), lambda b: (b[:, 2:] ^ 128, b[:, :2], _none(b))),
        T.Q2_K: (Layout(Pack.NIBBLE, Mode.K_TWO_PAIRS), lambda b: (*bytes_of_q2_k(b), b[:, 80:84])),
        T.Q3_K: (
            Layout(Pack.NIBBLE, Mode.K_TWO, 4),
            lambda b: (bytes_of_q3_k(b), q3_k_scales(b).view(-1, 8, 2), b[:, 108:110]),
        ),
        T.Q4_K: (Layout(Pack.NIBBLE, Mode.K_PAIR), lambda b: (nibbles_of_q4_k(b), k_scales(b), b[:, :4])),
        T.Q5_K: (Layout(Pack.SIX, Mode.K_PAIR), lambda b: (bytes_of_q5_k(b), k_scales(b), b[:, :4])),
        T.Q6_K: (
            Layout(Pack.SIX, Mode.K_TWO, 32),
            lambda b: (bytes_of_q6_k(b), b[:, 192:208].reshape(-1, 8, 2), b[:, 208:210]),
        ),
        # A nibble of the IQ4 types is an index into a table of 16 values, which do not lie evenly; looked up
        # here, they are bytes, and kernels need no table. That costs twice the memory of a nibble.
        T.IQ4_NL: (
            Layout(Pack.BYTE, Mode.HALF, 128),
            lambda b: (bytes_of_iq4(nibbles_of_q4(b[:, 2:])), b[:, :2], _none(b)),
        ),
        T.IQ4_XS: (
            Layout(Pack.BYTE, Mode.K_TWO, 128),
            lambda b: (
                bytes_of_iq4(nibbles_of_q4(b[:, 8:].reshape(-1, 8, 16)).flatten(1)),
                iq4_xs_scales(b).unsqueeze(-1).expand(-1, 8, 2),
                b[:, :2],
            ),
        ),
        # One factor for all 256 weights, written down for each 32.
        T.TQ1_0: (
            Layout(Pack.NIBBLE, Mode.HALF, 1),
            lambda b: (tq1_0_integers(b), _each(b[:, 52:54]), _none(b)),
        ),
        T.TQ2_0: (
            Layout(Pack.NIBBLE, Mode.HALF, 1),
            lambda b: (tq2_0_integers(b), _each(b[:, 64:66]), _none(b)),
        ),
        T.IQ3_S: (Layout(Pack.BYTE, Mode.K_TWO, 16), _iq3_s),
    }
)
