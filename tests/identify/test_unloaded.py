"""Matrices that nobody loaded, or that are another's, and numbers that are rounded one way."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from llama_ckpt.arithmetic.floats import to_float
from llama_ckpt.identify.identify import Identification, identify
from llama_ckpt.identify.record import Around, Asked
from llama_ckpt.identify.rounded import DIRECTED, one_way
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import Case
from tests.identify.product_faults import SHAPES, Array, asked_of, call_of, given, said_of


def _logits(make: Array, rows: int = 8) -> Identification:
    """What is said where logits of a vocabulary of 320 are made with another matrix."""
    on = given("grouped", 0)
    x, w = on["output_norm"][:rows], on.weights.output
    case = Case("qkv", {"x": x, "wq": w, "wk": w, "wv": w}, ("blk.0.q",))
    one = Evidence(
        "blk.0.q", (x @ make.T).astype(np.float32), x @ w.T, limit_for("blk.0.q", "float32", "own"), case
    )
    return identify(Asked([one], Around(on.config, SimpleNamespace(blocks=[SimpleNamespace()]))))


@pytest.mark.parametrize(
    "size, said", [(0.02, "0.02"), (8.0**-1, "1/sqrt(64)"), (192**-0.5, "1/sqrt(3 * 64)")]
)
def test_a_matrix_that_was_never_loaded(size: float, said: str) -> None:
    drawn = size * np.random.default_rng(2).standard_normal((320, 64))
    found = _logits(drawn)
    assert found.best is None and f"standard deviation of {said}" in found.like and found.facts


def test_numbers_of_the_file_in_another_order_are_not_called_random() -> None:
    w = given("grouped", 0).weights.output
    rng = np.random.default_rng(2)
    for make in (
        rng.permutation(w.ravel()).reshape(w.shape),
        3.7 * rng.permutation(w.ravel()).reshape(w.shape),
    ):
        found = _logits(make)
        assert found.best is None and not found.like and found.facts


def test_a_tensor_that_is_small_is_no_sum_of_nothing() -> None:
    """What is small beside the right one would be explained nearly by zeros."""
    found = _logits(1e-3 * np.random.default_rng(2).standard_normal((320, 64)))
    assert found.best is None


OTHERS = {
    "wq": ("attention", "attn_out", lambda w: w.wq, "the matrix is wq"),
    "wq, transposed": ("attention", "attn_out", lambda w: w.wq.T, "the matrix is wq transposed"),
    "up, transposed": ("swiglu", "ffn_out", lambda w: w.w_up.T, "the matrix is w_up transposed"),
    "gate, in other rows": (
        "swiglu",
        "ffn_out",
        lambda w: w.w_gate.reshape(64, 96),
        "w_gate, its numbers in rows of 96",
    ),
    "down, transposed": ("swiglu", "ffn_up", lambda w: w.w_down.T, "the matrix is w_down transposed"),
    "wo": ("qkv", "q", lambda w: w.wo, "the matrix is wo"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_another_matrix_of_the_block(shape: str, name: str) -> None:
    function, point, take, said = OTHERS[name]
    on = given(shape, 0)
    case = call_of(function, on)
    seen = case.run(getattr(oracle, function))
    reads = {"attn_out": "blk.2.attn_context", "ffn_out": "blk.2.ffn_swiglu"}.get(point)
    x = np.asarray(case.arguments["x"] if reads is None else seen[reads])
    made = (x @ take(on.weights.blocks[2]).T).reshape(seen[f"blk.2.{point}"].shape)
    best = said_of(asked_of(case, on, {point: made})).best
    assert best is not None and best.explained and said in best.sentence


@pytest.mark.parametrize("way", DIRECTED)
def test_a_sum_that_is_rounded_one_way(way: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 64)).astype(np.float32).astype(np.float64)
    case = Case("rms_norm", {"x": x, "weight": np.ones(64), "eps": 1e-5}, ("blk.0.ffn_norm",))
    o = oracle.rms_norm(x, np.ones(64), eps=1e-5)
    dtype = "bfloat16" if "bfloat16" in way else "float16"
    limit = limit_for("blk.0.ffn_norm", dtype, "own")
    best = identify(Asked([Evidence("blk.0.ffn_norm", DIRECTED[way][1](o), o, limit, case)])).best
    assert best is not None and way in best.sentence
    right = Evidence("blk.0.ffn_norm", o.astype(np.float16) if dtype == "float16" else o, o, limit, case)
    assert identify(Asked([right])).best is None


def test_directed_roundings_point_their_way() -> None:
    x = np.random.default_rng(0).standard_normal(1000)
    for way, (_, rounding) in DIRECTED.items():
        made = rounding(x)
        assert 0 < np.abs(made - x).max() <= 2.0**-6 and np.array_equal(rounding(made), made)
        step = made - x
        signs = {"toward zero": -np.sign(x), "away from": np.sign(x), "minus": -np.ones(1000)}
        wanted = next((sign for words, sign in signs.items() if words in way), np.ones(1000))
        assert (step * wanted >= 0).all()


def test_numbers_of_few_digits_are_not_called_cut() -> None:
    """An embedding of a packed file is what it is in any rounding, and nothing is said of it."""
    x = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float16).astype(np.float64)
    for name in ("bfloat16", "float16"):
        for o in (x, x + 1e-9):
            assert not list(one_way(to_float(o, name), o)) and not list(one_way(x, o))
