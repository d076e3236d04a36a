"""Weights in their places: torch's and the oracle's, the same values under the same names."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as T

from llama_ckpt.errors import ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.oracle.weights import OracleBlockWeights, OracleWeights
from llama_ckpt.weights.block_formats import PLAIN_DTYPES
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.decoders import BLOCK_DECODERS
from llama_ckpt.weights.quants import PackedWeight, Weight, linear
from llama_ckpt.weights.records import BlockWeights, ModelWeights, load_weights, unpacked
from llama_ckpt.weights.tensor_names import (
    BIAS_TENSORS,
    BLOCK_TENSORS,
    MODEL_TENSORS,
    block_tensor,
    expected_shapes,
)
from tests.gguf_files import write_llama

TYPES = sorted((*PLAIN_DTYPES, *BLOCK_DECODERS))


def opened(path: Path) -> tuple[GGUFFile, LlamaConfig]:
    file = GGUFFile(path)
    return file, LlamaConfig.from_gguf(file)


def small(tmp_path: Path, type: T = T.F32, tied: bool = False) -> tuple[GGUFFile, LlamaConfig]:
    path = tmp_path / f"{type.name}.gguf"
    return opened(write_llama(path, width=256, ffn=512, head_dim=64, vocab=16, type=type, tied_output=tied))


def values(weight: Weight) -> np.ndarray:
    if isinstance(weight, PackedWeight):
        weight = weight.dequantize(torch.float32)
    return weight.float().cpu().numpy()


def test_fields_and_tensors_correspond() -> None:
    names = [field.name for field in dataclasses.fields(BlockWeights)]
    assert names == [*BLOCK_TENSORS, "w_router", *BIAS_TENSORS]
    assert [field.name for field in dataclasses.fields(OracleBlockWeights)] == names
    assert {field.name for field in dataclasses.fields(ModelWeights)} == {*MODEL_TENSORS, "blocks"}


@pytest.mark.parametrize("type", TYPES, ids=[kind.name for kind in TYPES])
def test_every_tensor_is_in_its_place(tmp_path: Path, type: T) -> None:
    file, config = small(tmp_path, type)
    weights, exact = load_weights(file, config), OracleWeights(file, config)
    places: list[tuple[str, Weight, np.ndarray]] = [
        (name, getattr(weights, field), getattr(exact, field)) for field, name in MODEL_TENSORS.items()
    ]
    assert len(weights.blocks) == len(exact.blocks) == config.n_layers
    for number, (ours, oracle) in enumerate(zip(weights.blocks, exact.blocks, strict=True)):
        for field in BLOCK_TENSORS:
            places.append((block_tensor(number, field), getattr(ours, field), getattr(oracle, field)))

    assert sorted(name for name, _, _ in places) == sorted(file.tensors) == sorted(expected_shapes(config))
    for name, weight, array in places:
        want = file.float32(name)
        assert tuple(weight.shape) == want.shape == expected_shapes(config)[name]
        np.testing.assert_array_equal(values(weight), want)
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, want.astype(np.float64))


@pytest.mark.parametrize("type", TYPES, ids=[kind.name for kind in TYPES])
def test_weights_stay_in_the_file_s_type(tmp_path: Path, type: T) -> None:
    file, config = small(tmp_path, type)
    weights = load_weights(file, config)
    for matrix in (weights.token_embd, weights.output, weights.blocks[1].w_down):
        if type in PLAIN_DTYPES:
            assert isinstance(matrix, torch.Tensor) and matrix.dtype == PLAIN_DTYPES[type]
        else:
            assert isinstance(matrix, PackedWeight) and matrix.type == type
    assert isinstance(weights.output, PackedWeight | torch.Tensor)
    assert weights.output.nbytes == file.tensors["output.weight"].nbytes
    assert {norm.dtype for norm in (weights.output_norm, weights.blocks[0].ffn_norm)} == {torch.float32}


def test_a_tied_output_is_the_embedding_itself(tmp_path: Path) -> None:
    file, config = small(tmp_path, T.Q4_0, tied=True)
    weights, exact = load_weights(file, config), OracleWeights(file, config)
    assert weights.output is weights.token_embd
    assert exact.output is exact.token_embd


def test_on_the_cpu_nothing_is_copied_and_the_file_is_safe(tmp_path: Path) -> None:
    file, config = small(tmp_path)
    before = file.path.read_bytes()
    first, second = load_weights(file, config), load_weights(file, config)
    embedding = first.token_embd
    assert isinstance(embedding, torch.Tensor) and isinstance(second.token_embd, torch.Tensor)
    assert embedding.data_ptr() == second.token_embd.data_ptr()
    embedding.zero_()
    assert file.path.read_bytes() == before


def test_weights_outlive_the_file_object(tmp_path: Path) -> None:
    file, config = small(tmp_path, T.Q8_0)
    want = file.float32("output.weight").copy()
    weights, gone = load_weights(file, config), weakref.ref(file)
    del file
    gc.collect()
    assert gone() is None
    np.testing.assert_array_equal(values(weights.output), want)


def test_norms_of_another_type_become_float32(tmp_path: Path) -> None:
    path = write_llama(
        tmp_path / "m.gguf", tensors={"output_norm.weight": np.linspace(0, 1, 64, dtype=np.float16)}
    )
    file, config = opened(path)
    assert file.tensors["output_norm.weight"].type == T.F16
    norm = load_weights(file, config).output_norm
    assert norm.dtype == torch.float32
    np.testing.assert_array_equal(norm.numpy(), file.float32("output_norm.weight"))


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    nothing = dict.fromkeys(GGUFFile(write_llama(tmp_path / "m.gguf")).tensors)
    file, config = opened(write_llama(tmp_path / "vocabulary.gguf", tensors=nothing))
    for load in (load_weights, OracleWeights):
        with pytest.raises(ModelFileError, match="tensor token_embd.weight is missing"):
            load(file, config)


def test_a_tensor_left_over_is_refused(tmp_path: Path) -> None:
    file, config = opened(write_llama(tmp_path / "m.gguf", tensors={"more": np.ones(2, np.float32)}))
    for load in (load_weights, OracleWeights):
        with pytest.raises(UnsupportedModelError, match="'more' is not used"):
            load(file, config)


def test_the_oracle_s_blocks_are_made_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, config = small(tmp_path)
    kept = OracleWeights(file, config).blocks
    assert kept[0] is kept[0] and kept[-1] is kept[1]
    assert [block.wq.shape for block in kept[0:2]] == [(256, 256)] * 2
    with pytest.raises(IndexError):
        kept[2]

    monkeypatch.setattr("llama_ckpt.oracle.weights.KEPT_BYTES", 1000)
    fresh = OracleWeights(file, config).blocks
    assert fresh[0] is not fresh[0]
    alive = weakref.ref(fresh[0])
    gc.collect()
    assert alive() is None, "a large model's blocks must not pile up"


@pytest.mark.cuda
@pytest.mark.parametrize("type", TYPES, ids=[kind.name for kind in TYPES])
def test_on_cuda(tmp_path: Path, type: T) -> None:
    file, config = small(tmp_path, type)
    here, there = load_weights(file, config, "cpu"), load_weights(file, config, "cuda")
    assert there.output.device.type == there.output_norm.device.type == "cuda"
    np.testing.assert_array_equal(values(there.blocks[1].wo), values(here.blocks[1].wo))
    x = torch.ones(1, 256, device="cuda")
    assert torch.isfinite(linear(x, there.output)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("type", TYPES, ids=[kind.name for kind in TYPES])
def test_unpacked_matrices_give_the_same_bits(tmp_path: Path, type: T, dtype: torch.dtype) -> None:
    weights = load_weights(*small(tmp_path, type, tied=True))
    made = unpacked(weights, dtype)
    assert made.output is made.token_embd and made.output_norm is weights.output_norm
    pairs = [(weights.output, made.output)]
    for ours, theirs in zip(weights.blocks, made.blocks, strict=True):
        pairs += [(getattr(ours, name), getattr(theirs, name)) for name in BLOCK_TENSORS]
    for packed, plain in pairs:
        assert isinstance(plain, torch.Tensor) and plain.dtype == (
            dtype if plain.ndim == 2 else torch.float32
        )
        if plain.ndim == 2:
            x = torch.randn(1, plain.shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
            assert torch.equal(linear(x, packed), linear(x, plain))
        else:
            assert plain is packed
