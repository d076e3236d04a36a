"""Repacking: every plane read back in plain torch gives the file's values."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType as T
from torch import Tensor

from llama_ckpt.errors import ShapeError
from llama_ckpt.kernels.launching import from_pieces, to_pieces
from llama_ckpt.kernels.planes import ROW_PADDING, Mode, Pack, Planes, interleaved, repack, stacked
from llama_ckpt.weights.quants import PackedWeight
from tests.kernels.random_weights import FACTORS, packed


def halves(words: Tensor) -> Tensor:
    """Words [...] as their two float16 numbers [..., 2], float32."""
    return words.contiguous().view(torch.float16).view(*words.shape, -1).float()


def integers(planes: Planes) -> Tensor:
    """The stored integers, [rows, groups, 32]."""
    rows, width = planes.shape
    stored = planes.q.contiguous().view(torch.uint8).view(planes.q.shape[0], -1)[:rows]
    if planes.layout.pack in (Pack.NIBBLE, Pack.SIX):
        nibbles = stored[:, : width // 2]
        q = torch.stack((nibbles & 15, nibbles >> 4), dim=-1).reshape(rows, -1, 32)
        if planes.layout.pack == Pack.SIX:
            upper = stored[:, width // 2 :].reshape(rows, -1, 2, 1, 4)  # [rows, group, word, -, byte]
            fields = torch.stack([(upper >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1)
            fields = fields.squeeze(-3).unflatten(-1, (2, 2))  # [rows, group, word, byte, its word, parity]
            q = q | (fields.transpose(-3, -2).reshape(rows, -1, 32) << 4)
        return q
    return stored.view(rows, 2, width // 32, 16).transpose(1, 2).reshape(rows, -1, 32)


def read_back(planes: Planes) -> Tensor:
    """The values of planes, from the documented meaning of their modes."""
    rows, width = planes.shape
    q = integers(planes).float() - planes.layout.offset
    scale, factors = planes.scale[:rows], planes.super[:rows]
    if planes.layout.mode == Mode.HALF:
        return (halves(scale) * q).reshape(rows, width)
    if planes.layout.mode == Mode.PAIR:
        d, m = halves(scale).unsqueeze(-1).unbind(-2)
        return (d * q + m).reshape(rows, width)
    entries = scale.contiguous().view(torch.uint8).view(rows, width // 32, -1)
    factor = halves(factors).repeat_interleave(8, dim=1)
    if planes.layout.mode == Mode.K_PAIR:
        scaled = (factor * entries).unsqueeze(-1)
        return (scaled[..., 0, :] * q - scaled[..., 1, :]).reshape(rows, width)
    halved = q.reshape(rows, -1, 2, 16)
    if planes.layout.mode == Mode.K_TWO:
        return (factor * entries.view(torch.int8)).unsqueeze(-1).mul(halved).reshape(rows, width)
    pairs = factor.unsqueeze(-2) * entries.view(rows, -1, 2, 2)
    return (pairs[..., :1] * halved - pairs[..., 1:]).reshape(rows, width)


@pytest.mark.parametrize("type", FACTORS, ids=lambda t: t.name)
def test_planes_hold_the_values_of_the_file(type: T) -> None:
    weight = packed(type, 5, 512)
    planes = repack(weight)
    assert planes.q.shape[0] % ROW_PADDING == 0 and planes.q.data_ptr() % 16 == 0
    assert torch.equal(read_back(planes), weight.dequantize())


def test_rows_beyond_the_weight_are_zero() -> None:
    planes = repack(packed(T.Q8_0, 5, 64))
    assert not planes.scale[5:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_plain_weights_stay_as_they_are(dtype: torch.dtype) -> None:
    weight = torch.randn(32, 64).to(dtype)
    planes = repack(weight)
    assert planes.q.data_ptr() == weight.data_ptr()
    assert torch.equal(planes.q.view(dtype), weight)


def test_width_must_be_whole_groups() -> None:
    with pytest.raises(ShapeError):
        repack(torch.zeros(4, 40))


def test_stacked_and_interleaved_keep_rows_and_refuse_other_types() -> None:
    a, b = packed(T.Q4_0, 3, 64, seed=1), packed(T.Q4_0, 3, 64, seed=2)
    under, turns = stacked((a, b)), interleaved(a, b)
    assert isinstance(under, PackedWeight) and isinstance(turns, PackedWeight)
    assert torch.equal(under.dequantize(), torch.cat((a.dequantize(), b.dequantize())))
    assert torch.equal(turns.dequantize()[1::2], b.dequantize())
    other = packed(T.Q8_0, 3, 64)
    assert stacked((a, other)) is None and interleaved(a, other) is None


def test_pieces_come_back() -> None:
    x = torch.randn(3, 256)
    assert torch.equal(from_pieces(to_pieces(x)), x)
