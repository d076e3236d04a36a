"""How a quantized matrix was misread: each way of the list, in all of it or in a part, or measured."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.identify.identify import identify
from llama_ckpt.identify.misreadings import misreadings
from llama_ckpt.identify.record import Around, Asked
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import Case
from llama_ckpt.weights.config import LlamaConfig
from tests.draws import draws

MOST = settings(max_examples=draws(8, 300), deadline=None, derandomize=True)
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q8_0")
K_QUANTS = ("Q4_K_S", "Q6_K", "Q2_K", "Q3_K_S")
"""llama.cpp itself quantizes these."""


@cache
def _model(kind: str):
    path = Path(mkdtemp(prefix="misread")) / "model.gguf"
    make_seeded(
        path,
        width=256,
        n_heads=4,
        n_kv_heads=2,
        ffn=512,
        n_layers=1,
        vocab=64,
        seed=3,
        type=kind,
        vocabulary="none",
    )
    file = open_gguf(path)
    config = LlamaConfig.from_gguf(file)
    return config, OracleWeights(file, config)


def _case(kind: str, rows: int):
    config, weights = _model(kind)
    w = weights.blocks[0]
    x = np.random.default_rng(rows).standard_normal((rows, 256)).astype(np.float32).astype(np.float64)
    arguments = {"x": x, "wq": w.wq, "wk": w.wk, "wv": w.wv, "n_heads": 4, "n_kv_heads": 2}
    return Case("qkv", arguments, ("blk.0.q", "blk.0.k", "blk.0.v")), config, weights


def _found(kind: str, rows: int, point: str, w):
    """What is said where a product of the call is made with w."""
    case, config, weights = _case(kind, rows)
    right = case.run(oracle.qkv)
    evidence = []
    for name in case.returns:
        o = right[name]
        x = (case.arguments["x"] @ w.T).reshape(o.shape) if name.endswith(f".{point}") else o
        evidence.append(Evidence(name, x.astype(np.float32), o, limit_for(name, "float32", "own"), case))
    evidence.sort(key=lambda one: not one.name.endswith(f".{point}"))
    return identify(Asked(evidence, Around(config, weights))).best


@MOST
@drawn(st.sampled_from(TYPES), st.sampled_from((1, 2, 8)), st.sampled_from("qkv"), st.data())
def test_each_way_is_recovered(kind, rows, point, data):
    _recovered(kind, rows, point, data)


@pytest.mark.llama_cpp
@MOST
@drawn(st.sampled_from(K_QUANTS), st.sampled_from((1, 2, 8)), st.sampled_from("qkv"), st.data())
def test_each_way_to_misread_k_quants_is_recovered(kind, rows, point, data):
    _recovered(kind, rows, point, data)


def _recovered(kind, rows, point, data):
    case, _, _ = _case(kind, rows)
    w = case.arguments[f"w{point}"]
    parts = w.parts
    one = data.draw(st.sampled_from(list(misreadings(parts))))
    wrong = np.asarray(w) + one.read(parts).values() - parts.values()
    if np.linalg.norm(wrong - w) < 1e-4 * np.linalg.norm(w):
        return
    found = _found(kind, rows, point, wrong)
    assert found is not None and found.explained, one.sentence
    x = case.arguments["x"]
    assert np.allclose(found.predicted[f"blk.0.{point}"].reshape(rows, -1), x @ wrong.T, rtol=1e-4, atol=1e-3)
    same = "product.column_order" if one.kind == "order" else "weights."  # within a block it is one thing
    assert found.kind.startswith(("weights.", "product.factor", same)), found.sentence


@MOST
@drawn(st.sampled_from(("Q4_0", "Q8_0")), st.sampled_from((2, 8)), st.data())
def test_a_part_is_recovered(kind, rows, data):
    case, _, _ = _case(kind, rows)
    w = case.arguments["wq"]
    one = data.draw(st.sampled_from([m for m in misreadings(w.parts) if m.kind in ("sign", "zero", "order")]))
    first = 32 * data.draw(st.integers(0, 7))
    end = data.draw(st.sampled_from(range(first + 32, 257, 32)))
    wrong = np.asarray(w).copy()
    changed = one.read(w.parts).values() - w.parts.values()
    wrong[:, first:end] += changed[:, first:end]
    if np.linalg.norm(changed[:, first:end]) < 1e-4 * np.linalg.norm(w):
        return
    found = _found(kind, rows, "q", wrong)
    assert found is not None and found.explained, one.sentence
    if end - first < 256 and found.kind.startswith("weights."):
        # An order keeps some integers where they are: of those columns nobody can tell.
        said = {n for a, b in found.place.columns for n in range(a, b + 1)}
        moves = set(np.flatnonzero(changed.any(axis=0)).tolist())
        assert said & moves == moves & {*range(first, end)}


@MOST
@drawn(st.integers(0, 1 << 30))
def test_any_meaning_of_integers_is_measured(seed):
    case, _, _ = _case("Q4_0", 8)
    w = case.arguments["wq"]
    meaning = np.random.default_rng(seed).permutation(16) - 8.0
    wrong = replace(w.parts, meaning=meaning).values()
    found = _found("Q4_0", 8, "q", wrong)
    assert found is not None and found.explained
    seen = np.unique(w.parts.integers)
    assert np.allclose(np.asarray(found.parameters["meaning"])[seen], meaning[seen])


@pytest.mark.llama_cpp
def test_a_fault_in_one_type_of_a_mixed_file():
    case, _, _ = _case("Q4_K_M", 8)
    kinds = {point: case.arguments[f"w{point}"].weight_type for point in "qkv"}
    assert kinds["v"] == "Q6_K" and kinds["q"] == "Q4_K"
    parts = case.arguments["wv"].parts
    wrong = replace(parts, meaning=np.where(parts.meaning < 0, parts.meaning + 32, parts.meaning)).values()
    found = _found("Q4_K_M", 8, "v", wrong)
    assert found is not None and found.explained
    assert "the matrix is Q6_K, of Q4_K they are right here" in found.sentence


@pytest.mark.parametrize(
    "kind", [*TYPES, *(pytest.param(one, marks=pytest.mark.llama_cpp) for one in K_QUANTS)]
)
def test_of_a_right_matrix_nothing_is_said(kind):
    case, _, _ = _case(kind, 8)
    assert _found(kind, 8, "q", np.asarray(case.arguments["wq"])) is None


def _permuted(parts, what):
    """The parts with something of each block, or of each output, in an order that no list has."""
    draw = np.random.default_rng(5).permutation
    if what == "minimum":
        return replace(parts, minimum=parts.minimum[draw(len(parts.minimum))])
    if what == "scale":
        return replace(parts, scale=parts.scale[draw(len(parts.scale))])
    high = parts.integers & 16
    moved = high.reshape(len(high), -1, 32)[:, :, draw(32)].reshape(high.shape)
    return replace(parts, integers=parts.integers - high + moved)


@pytest.mark.parametrize("kind, what", [("Q4_1", "minimum"), ("Q4_0", "scale"), ("Q5_0", "bits")])
def test_an_order_that_no_list_has(kind, what):
    case, _, _ = _case(kind, 8)
    w = case.arguments["wq"]
    wrong = np.asarray(w) + _permuted(w.parts, what).values() - w.parts.values()
    found = _found(kind, 8, "q", wrong)
    assert found is not None and found.explained
    assert found.kind == f"weights.{what}"
    predicted = found.predicted["blk.0.q"].reshape(8, -1)
    assert np.allclose(predicted, case.arguments["x"] @ wrong.T, rtol=1e-4, atol=1e-3)
