"""The oracle of a large model on the CPU: float32 values that the layers use too, float64 products."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llama_ckpt.errors import ReferenceError
from llama_ckpt.judging.rounding_steps import CHUNKS, PRECISIONS, product_deviation, product_terms_of
from llama_ckpt.making.derive import derive
from llama_ckpt.model import Model, load
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle import on_cpu
from llama_ckpt.oracle.on_cpu import HostMatrix, HostOracleWeights
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.weights.unpacking import unpacked_by_block

TOKENS = (1, 15043, 3186, 29991)


@pytest.fixture(scope="module")
def model(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = derive(embedded_model, "Q4_0", tmp_path_factory.mktemp("model") / "q.gguf").path
    return load(path, device="cpu")


def shared(model: Model, most: int = 0) -> HostOracleWeights:
    unpacked = unpacked_by_block(model.weights, most)
    return HostOracleWeights(model.file, model.config, model.weights, unpacked)


def test_every_point_is_that_of_numpy(model: Model) -> None:
    found: dict[str, np.ndarray] = {}
    wanted: dict[str, np.ndarray] = {}
    for weights, seen in ((shared(model), found), (OracleWeights(model.file, model.config), wanted)):
        at = range(len(TOKENS))
        seen["logits"] = oracle.logits(
            TOKENS, weights, config=model.config, positions=at, tap=seen.__setitem__
        )
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=1e-12 * np.abs(wanted[name]).max())


def test_layers_compute_the_same_bits_with_unpacked_weights(model: Model) -> None:
    other = replace(model, weights=unpacked_by_block(model.weights, 0))
    assert torch.equal(other.logits(TOKENS), model.logits(TOKENS))


@pytest.mark.parametrize("most", [0, 1 << 40])
def test_blocks_are_made_once_where_they_fit_and_one_at_a_time_elsewhere(model: Model, most: int) -> None:
    weights = shared(model, most)
    first, made = weights.blocks[0], weights.unpacked.blocks[0]
    assert weights.blocks[0] is first
    assert first.wq.values is made.wq
    assert weights.blocks[1] is not first
    assert (weights.unpacked.blocks[0] is made) is (most > 0)


def test_wrong_weights_are_refused(model: Model) -> None:
    unpacked = unpacked_by_block(model.weights, 1 << 40)
    weights = HostOracleWeights(model.file, model.config, model.weights, unpacked)
    unpacked.blocks[2].wk[-1, 5] += 1e-3
    assert weights.blocks[1].wq is not None
    with pytest.raises(ReferenceError, match=r"row \d+ of the weights of blk\.2\.attn_k\.weight: .*gguf"):
        _ = weights.blocks[2]


@pytest.mark.parametrize("tile", [100, 1 << 17])
def test_a_matrix_is_multiplied_from_the_right_on_both_sides(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_cpu, "TILE", tile)
    draw = np.random.default_rng(1)
    wide = draw.standard_normal((37, 24)).astype(np.float32)
    matrix = HostMatrix(torch.from_numpy(wide), "F32")
    x, back = draw.standard_normal((5, 24)), draw.standard_normal((2, 3, 37))
    np.testing.assert_allclose(x @ matrix.T, x @ wide.T.astype(np.float64), rtol=1e-13)
    np.testing.assert_allclose(back @ matrix, back @ wide.astype(np.float64), rtol=1e-12)
    np.testing.assert_array_equal(np.asarray(matrix), wide)
    np.testing.assert_array_equal(np.asarray(matrix[3:7]), wide[3:7])
    np.testing.assert_allclose(matrix.column_means(), wide.mean(axis=0, dtype=np.float64), rtol=1e-12)
    with pytest.raises(TypeError):
        matrix @ np.ones((24, 2))
    with pytest.raises(TypeError):
        matrix.T + np.ones((24, 37))


@pytest.mark.parametrize("width", [64, 52])
@pytest.mark.parametrize("rows", ["even", "uneven"])
def test_the_terms_of_rounding_are_those_of_numpy(width: int, rows: str) -> None:
    draw = np.random.default_rng(2)
    # Rows of very different sizes, the last one of an empty slot: their squares leave float32 unless scaled.
    sizes = np.array([[1e-30], [1.0], [1e25], [0.0]])
    x = (0.3 + draw.standard_normal((4, width))) * sizes
    wide = (0.1 + draw.standard_normal((9, width))).astype(np.float32)
    if rows == "uneven":
        wide *= np.float32([1e-25, 1, 1e25, 0, 1, 1, 1, 1, 1])[:, None]
    matrix = HostMatrix(torch.from_numpy(wide), "F32")
    exact = wide.astype(np.float64)
    for found, array in zip(product_terms_of(x, matrix), product_terms_of(x, exact), strict=True):
        assert found.dtype == np.float64 and found.shape == (4, len(wide))
        np.testing.assert_allclose(found, array, rtol=1e-3)
    assert matrix.product_terms(x, CHUNKS)[1].any()
    carried, y = np.abs(x) * 1e-7, x @ exact.T
    for found, array in zip(
        product_deviation(x, matrix, y, PRECISIONS["float32"], carried),
        product_deviation(x, exact, y, PRECISIONS["float32"], carried),
        strict=True,
    ):
        assert found is not None and array is not None
        np.testing.assert_allclose(found, array, rtol=1e-3)
