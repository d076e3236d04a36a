"""Block formats: bit for bit `gguf.quants.dequantize`, and bytes worked out by hand beside it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize as gguf_dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama_ckpt.errors import ShapeError, UnsupportedModelError
from llama_ckpt.weights import decoding
from llama_ckpt.weights.block_formats import PLAIN_DTYPES
from llama_ckpt.weights.decoders import BLOCK_DECODERS
from llama_ckpt.weights.llama_tensors import SUPPORTED_TYPES
from llama_ckpt.weights.quants import PackedWeight, dequantize, embedding_rows, linear
from tests.gguf_files import HALF_FIELDS, random_rows

TYPES = sorted(SUPPORTED_TYPES)
QUANTIZED = sorted(BLOCK_DECODERS)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ODD_HALVES = [
    0x0000,
    0x8000,
    0x0001,
    0x83FF,
    0x0400,
    0x3C00,
    0xBC00,
    0x7BFF,
    0xFBFF,
    0x7C00,
    0xFC00,
    0x7E00,
    0xFFFF,
]
"""Zeros, smallest and largest denormal, smallest normal, one, largest, infinities, NaNs; as float16 bits."""

NAMES = [kind.name for kind in TYPES]


def wanted(raw: NDArray[np.uint8], type: T) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return np.asarray(gguf_dequantize(raw, type), np.float32)


def assert_same_bits(got: torch.Tensor, want: NDArray[np.float32]) -> None:
    assert got.dtype == torch.float32
    values = got.cpu().numpy()
    assert values.shape == want.shape
    both_nan = np.isnan(values) & np.isnan(want)
    differs = (values.view(np.uint32) != want.view(np.uint32)) & ~both_nan
    assert not differs.any(), f"{differs.sum()} of {differs.size} differ, first {values[differs][0]!r}"


def test_the_types_are_those_of_the_file_reader() -> None:
    assert set(BLOCK_DECODERS) | set(PLAIN_DTYPES) == SUPPORTED_TYPES


# --- beside gguf


@pytest.mark.parametrize("type", TYPES, ids=NAMES)
@settings(max_examples=30)
@given(data=st.data())
def test_any_bytes(type: T, data: st.DataObject) -> None:
    block, block_bytes = GGML_QUANT_SIZES[type]
    n_rows, n_blocks = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    raw = random_rows(type, (n_rows, n_blocks * block), rng)
    for at in HALF_FIELDS.get(type, ()):
        halves = data.draw(
            st.lists(st.sampled_from(ODD_HALVES) | st.integers(0, 0xFFFF), min_size=1), label="d"
        )
        chosen = rng.choice(np.array(halves, "<u2"), n_rows * n_blocks)
        raw.reshape(-1, block_bytes)[:, at : at + 2] = chosen.view(np.uint8).reshape(-1, 2)

    got = dequantize(torch.from_numpy(raw), type, (n_rows, n_blocks * block))
    assert_same_bits(got, wanted(raw, type))


@pytest.mark.parametrize("type", QUANTIZED, ids=[kind.name for kind in QUANTIZED])
def test_every_scale(type: T) -> None:
    """All 65,536 float16 values as scales (an eighth of them in the large blocks), random integers."""
    block, block_bytes = GGML_QUANT_SIZES[type]
    n_blocks = (1 << 16) // (block // 32)
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)
    for at in HALF_FIELDS.get(type, ()):
        halves = rng.permutation(1 << 16)[:n_blocks].astype("<u2")
        raw[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    assert_same_bits(dequantize(torch.from_numpy(raw), type, (n_blocks, block)), wanted(raw, type))


@pytest.mark.parametrize("type", TYPES, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_round_once(type: T, dtype: torch.dtype) -> None:
    raw = torch.from_numpy(random_rows(type, (3, 512), np.random.default_rng(2)))
    exact = dequantize(raw, type, (3, 512), torch.float32)
    got = dequantize(raw, type, (3, 512), dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(got, exact.to(dtype), rtol=0, atol=0, equal_nan=True)


# --- beside bytes worked out by hand


def by_hand(type: T, block: bytes) -> list[float]:
    raw = torch.frombuffer(bytearray(block), dtype=torch.uint8)
    result: list[float] = dequantize(raw, type, (GGML_QUANT_SIZES[type][0],)).tolist()
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("type", QUANTIZED, ids=[kind.name for kind in QUANTIZED])
def test_pieces_come_to_the_whole(type: T, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    block, block_bytes = GGML_QUANT_SIZES[type]
    raw = random_rows(type, (7, 3 * block), np.random.default_rng(7))
    for at in HALF_FIELDS.get(type, ()):
        raw.reshape(-1, block_bytes)[:13, at : at + 2] = (
            np.array(ODD_HALVES, "<u2").view(np.uint8).reshape(-1, 2)
        )
    whole = torch.from_numpy(wanted(raw, type)).to(dtype)
    monkeypatch.setattr(decoding, "PIECE", 4 * block)  # 21 blocks: five pieces, and one of a single block
    odd = torch.zeros(raw.size + 1, dtype=torch.uint8)
    odd[1:] = torch.from_numpy(raw).flatten()
    for given_bytes in (torch.from_numpy(raw), odd[1:].view(7, -1)):
        got = dequantize(given_bytes, type, (7, 3 * block), dtype)
        assert torch.equal(got.isnan(), whole.isnan())
        assert torch.equal(got.nan_to_num(0.5), whole.nan_to_num(0.5))
        assert torch.equal(got.signbit() & ~got.isnan(), whole.signbit() & ~whole.isnan())


def test_q4_0_by_hand() -> None:
    block = struct.pack("<e", 0.5) + bytes([0x80 | n for n in range(16)])
    # Byte n is 0x8n: element n is 0.5 * (n - 8); element 16 + n is 0.5 * (8 - 8).
    assert by_hand(T.Q4_0, block) == [0.5 * (n - 8) for n in range(16)] + [0.0] * 16


def test_q8_0_by_hand() -> None:
    block = struct.pack("<e", -0.25) + struct.pack("32b", *range(-128, -112), *range(112, 128))
    assert by_hand(T.Q8_0, block) == [-0.25 * n for n in (*range(-128, -112), *range(112, 128))]


def test_q5_1_by_hand() -> None:
    fifth_bits = 0x80000001  # of elements 0 and 31
    block = struct.pack("<eeI", 2.0, -3.0, fifth_bits) + bytes([0x21] * 16)
    # Low nibbles are 1, high ones 2; with the fifth bit 17 and 18.
    assert by_hand(T.Q5_1, block) == [2.0 * 17 - 3] + [2.0 * 1 - 3] * 15 + [2.0 * 2 - 3] * 15 + [2.0 * 18 - 3]


def test_iq4_nl_by_hand() -> None:
    block = struct.pack("<e", 1.0) + bytes([0x0F | n << 4 for n in range(16)])
    values = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    assert by_hand(T.IQ4_NL, block) == [113.0] * 16 + [float(value) for value in values]


def test_q4_k_by_hand() -> None:
    # Scales 1 … 8 and mins 10, 20, 30, 40, 50, 60, 61, 63, six bits each. Of the last four scales
    # (5, 6, 7, 8) and mins (50, 60, 61, 63) the low nibbles go to bytes 8-11, the high two bits to the
    # top of bytes 0-3 and 4-7: 50 = 3·16 + 2, 60 = 3·16 + 12, 61 = 3·16 + 13, 63 = 3·16 + 15.
    packed = bytes([1, 2, 3, 4, 10 | 3 << 6, 20 | 3 << 6, 30 | 3 << 6, 40 | 3 << 6])
    packed += bytes([5 | 2 << 4, 6 | 12 << 4, 7 | 13 << 4, 8 | 15 << 4])
    # 32 bytes hold two groups: low nibbles 1, high nibbles 2, then 3 and 4, 5 and 6, 7 and 8.
    quants = bytes([0x21] * 32 + [0x43] * 32 + [0x65] * 32 + [0x87] * 32)
    block = struct.pack("<ee", 0.5, 0.25) + packed + quants
    mins = (10, 20, 30, 40, 50, 60, 61, 63)
    groups = [0.5 * scale * q - 0.25 * m for scale, q, m in zip(range(1, 9), range(1, 9), mins, strict=True)]
    assert by_hand(T.Q4_K, block) == [value for value in groups for _ in range(32)]


# --- tensors of any layout


@pytest.mark.parametrize("type", TYPES, ids=NAMES)
def test_bytes_at_an_odd_address_and_in_slices(type: T) -> None:
    rows = random_rows(
        type, (4, 512), np.random.default_rng(3), scale=1.0 if type in BLOCK_DECODERS else None
    )
    shifted = torch.zeros(rows.size + 1, dtype=torch.uint8)
    shifted[1:] = torch.from_numpy(rows).flatten()
    unaligned = shifted[1:].view(rows.shape)
    assert_same_bits(dequantize(unaligned, type, (4, 512)), wanted(rows, type))
    every_other = torch.from_numpy(rows)[::2]
    assert_same_bits(dequantize(every_other, type, (2, 512)), wanted(np.ascontiguousarray(rows[::2]), type))


@pytest.mark.parametrize("type", TYPES, ids=NAMES)
def test_no_step_depends_on_data(type: T) -> None:
    """On torch's meta device a tensor has a shape and no values: whatever looks at values fails there."""
    block, block_bytes = GGML_QUANT_SIZES[type]
    raw = torch.empty(4, 512 // block * block_bytes, dtype=torch.uint8, device="meta")
    weight = PackedWeight(raw, type, (4, 512))
    x = torch.empty(3, 512, dtype=torch.float16, device="meta")
    assert linear(x, weight).shape == (3, 4)
    assert weight.rows(torch.empty(2, dtype=torch.int64, device="meta"), torch.float16).shape == (2, 512)


@pytest.mark.parametrize(
    ("raw", "shape"),
    [
        (torch.zeros(18, dtype=torch.int8), (32,)),
        (torch.zeros(17, dtype=torch.uint8), (32,)),
        (torch.zeros(36, dtype=torch.uint8), (32,)),
        (torch.zeros(18, dtype=torch.uint8), (64,)),
    ],
)
def test_bytes_that_do_not_fit(raw: torch.Tensor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        dequantize(raw, T.Q4_0, shape)


def test_a_type_that_is_not_supported() -> None:
    with pytest.raises(UnsupportedModelError, match="got Q8_1, wanted one of BF16, F16, F32, IQ1_M"):
        dequantize(torch.zeros(36, dtype=torch.uint8), T.Q8_1, (32,))
    with pytest.raises(UnsupportedModelError):
        PackedWeight(torch.zeros(1, 36, dtype=torch.uint8), T.Q8_1, (1, 32))


# --- packed weights


def packed_weight(type: T, shape: tuple[int, int] = (6, 256)) -> PackedWeight:
    scale = 1e-2 if type in BLOCK_DECODERS else None
    values = random_rows(type, shape, np.random.default_rng(4), scale=scale)
    return PackedWeight(torch.from_numpy(values), type, shape)


@pytest.mark.parametrize("bad", [(5, 256), (6, 512), (6, 200)])
def test_a_packed_weight_checks_its_bytes(bad: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="the bytes of a Q4_K weight"):
        PackedWeight(packed_weight(T.Q4_K).raw, T.Q4_K, bad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("type", QUANTIZED, ids=[kind.name for kind in QUANTIZED])
def test_a_product_is_that_of_the_values(type: T, dtype: torch.dtype) -> None:
    weight = packed_weight(type)
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(5)).to(dtype)
    got = linear(x, weight)
    assert (got.dtype, got.shape) == (dtype, (2, 3, 6))
    torch.testing.assert_close(got, linear(x, weight.dequantize(dtype)), rtol=0, atol=0)
    exact = x.double() @ weight.dequantize(dtype).double().T
    scale = x.double().abs() @ weight.dequantize(dtype).double().abs().T
    assert ((got.double() - exact).abs() <= 4 * torch.finfo(dtype).eps * scale).all()


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plain_weight_is_brought_to_the_dtype(stored: torch.dtype, dtype: torch.dtype) -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(6)).to(stored)
    x = torch.ones(8, dtype=dtype)
    got = linear(x, weight)
    assert got.dtype == dtype
    torch.testing.assert_close(got, torch.nn.functional.linear(x, weight.to(dtype)), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("type", QUANTIZED, ids=[kind.name for kind in QUANTIZED])
@pytest.mark.parametrize("ids", [[5, 0, 5], [[1, 2], [3, 4]], []], ids=str)
def test_rows_are_those_of_the_whole(type: T, dtype: torch.dtype, ids: Sequence[int]) -> None:
    weight, token_ids = packed_weight(type), torch.tensor(ids, dtype=torch.int64)
    whole = weight.dequantize(dtype)
    got = embedding_rows(token_ids, weight, dtype)
    assert (got.dtype, got.shape) == (dtype, (*token_ids.shape, 256))
    torch.testing.assert_close(got, whole[token_ids], rtol=0, atol=0)
    torch.testing.assert_close(got, embedding_rows(token_ids, whole, dtype), rtol=0, atol=0)


def test_a_packed_weight_tells_what_it_is() -> None:
    weight = packed_weight(T.Q4_0)
    assert (weight.shape, weight.device.type, weight.nbytes) == ((6, 256), "cpu", 6 * 8 * 18)
    moved = weight.to("meta")
    assert (moved.device.type, moved.shape, moved.type) == ("meta", (6, 256), T.Q4_0)


# --- on CUDA


@pytest.mark.cuda
@pytest.mark.parametrize("type", TYPES, ids=NAMES)
def test_the_same_bits_on_cuda(type: T) -> None:
    raw = random_rows(type, (64, 4096), np.random.default_rng(7))
    assert_same_bits(dequantize(torch.from_numpy(raw).cuda(), type, (64, 4096)), wanted(raw, type))


@pytest.mark.cuda
@pytest.mark.parametrize("type", TYPES, ids=NAMES)
def test_captured_in_a_cuda_graph(type: T) -> None:
    weight = packed_weight(type, (64, 512)).to("cuda")
    x, token_ids = torch.randn(4, 512, device="cuda"), torch.tensor([3, 1], device="cuda")
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):  # cuBLAS makes its workspace at its first use, outside the capture
        linear(x, torch.randn(64, 512, device="cuda"))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        product, rows = linear(x, weight), weight.rows(token_ids)
    x.copy_(torch.randn(4, 512, device="cuda"))
    token_ids.copy_(torch.tensor([60, 2]))
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(product, linear(x, weight), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(rows, weight.rows(token_ids), rtol=0, atol=0, equal_nan=True)
