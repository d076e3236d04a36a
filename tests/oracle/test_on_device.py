"""The oracle with its products on the model's device: the same numbers, and never by wrong weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llama_ckpt.errors import ReferenceError
from llama_ckpt.judging.rounding_steps import CHUNKS, product_terms_of
from llama_ckpt.model import Model, load
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.on_cpu import HostOracleWeights
from llama_ckpt.oracle.on_device import DeviceMatrix, DeviceOracleWeights, oracle_weights
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.weights.quants import PackedWeight

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
TOKENS = (1, 15043, 3186, 29991)


@pytest.fixture(params=DEVICES)
def model(request: pytest.FixtureRequest, embedded_model: Path) -> Model:
    return load(embedded_model, device=request.param)


def test_every_point_is_that_of_numpy(model: Model) -> None:
    found: dict[str, np.ndarray] = {}
    wanted: dict[str, np.ndarray] = {}
    for weights, seen in (
        (DeviceOracleWeights(model.file, model.config, model.weights), found),
        (OracleWeights(model.file, model.config), wanted),
    ):
        at = range(len(TOKENS))
        seen["logits"] = oracle.logits(
            TOKENS, weights, config=model.config, positions=at, tap=seen.__setitem__
        )
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=1e-12 * np.abs(wanted[name]).max())


def test_a_quantized_matrix_is_what_gguf_reads(embedded_model: Path, tmp_path: Path) -> None:
    from llama_ckpt.making.derive import derive

    model = load(derive(embedded_model, "Q8_0", tmp_path / "q.gguf").path, device="cpu")
    weight = model.weights.blocks[3].w_down
    assert isinstance(weight, PackedWeight)
    x = np.random.default_rng(1).standard_normal((5, weight.shape[1]))
    np.testing.assert_allclose(
        x @ DeviceMatrix(weight).T, x @ model.file.float64("blk.3.ffn_down.weight").T, rtol=1e-12, atol=1e-12
    )


def test_wrong_weights_on_the_device_are_refused(model: Model) -> None:
    blocks = list(model.weights.blocks)
    blocks[2] = replace(blocks[2], wk=blocks[2].wk + 1e-3)
    wrong = replace(model, weights=replace(model.weights, blocks=tuple(blocks)))
    weights = DeviceOracleWeights(wrong.file, wrong.config, wrong.weights)
    assert weights.blocks[1].wq is not None
    with pytest.raises(
        ReferenceError, match=r"weights of blk\.2\.attn_k\.weight on (cpu|cuda).*: got .*equal"
    ):
        _ = weights.blocks[2]


def test_only_a_products_right_side_is_taken(model: Model) -> None:
    matrix = DeviceMatrix(torch.ones(4, 8))
    with pytest.raises(TypeError):
        matrix.T + np.ones((8, 4))
    with pytest.raises(TypeError):
        matrix @ np.ones((8, 2))
    np.testing.assert_array_equal(np.ones((2, 4)) @ matrix, np.full((2, 8), 4.0))
    np.testing.assert_array_equal(matrix.column_means(), np.ones(8))


def test_the_terms_of_rounding_are_those_of_numpy(model: Model) -> None:
    weight = model.weights.blocks[3].w_down
    draw = np.random.default_rng(2)
    # Rows of very different sizes, the last one of an empty slot: their squares leave float32 unless scaled.
    sizes = np.array([[1e-30], [1.0], [1e25], [0.0]])
    x = (0.3 + draw.standard_normal((4, weight.shape[1]))) * sizes
    wide = model.file.float64("blk.3.ffn_down.weight")
    wanted = product_terms_of(x, wide)
    matrix = DeviceMatrix(weight)
    for found, array in zip(product_terms_of(x, matrix), wanted, strict=True):
        assert found.dtype == np.float64 and found.shape == (4, len(wide))
        np.testing.assert_allclose(found, array, rtol=1e-3)
    norms = np.sqrt((x / sizes.clip(1e-30)) ** 2 @ (wide**2).T) * sizes
    np.testing.assert_allclose(matrix.product_terms(x, 0)[0], norms, rtol=1e-5)
    sums = (x[:, : -(-x.shape[1] // CHUNKS)] @ wide[:, : -(-x.shape[1] // CHUNKS)].T)[1:2]
    assert np.all(matrix.product_terms(x, CHUNKS)[1][1:2] >= np.abs(sums) / CHUNKS**0.5 * 0.999)


def test_packed_weights_have_the_same_terms(embedded_model: Path, tmp_path: Path) -> None:
    from llama_ckpt.making.derive import derive

    model = load(derive(embedded_model, "Q4_0", tmp_path / "q.gguf").path, device="cpu")
    x = np.random.default_rng(1).standard_normal((5, model.config.width))
    wide = model.file.float64("blk.3.ffn_up.weight")
    found = product_terms_of(x, DeviceMatrix(model.weights.blocks[3].w_up))
    for one, array in zip(found, product_terms_of(x, wide), strict=True):
        np.testing.assert_allclose(one, array, rtol=1e-3)


def test_small_models_keep_to_numpy(model: Model) -> None:
    given = (model.file, model.config, model.weights, model.device)
    assert type(oracle_weights(*given)) is OracleWeights
    large = type(oracle_weights(*given, above=0))
    assert large is (HostOracleWeights if model.device.type == "cpu" else DeviceOracleWeights)
