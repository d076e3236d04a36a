"""Which columns were summed, and with which weight: drawn, and recovered as drawn."""

from __future__ import annotations

import numpy as np
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from llama_ckpt.arithmetic.formats import FORMATS, UNROUNDED, block_of, rounded
from llama_ckpt.identify.permutations import orders
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.judging.matching import distance
from llama_ckpt.oracle import llama as oracle
from tests.draws import draws
from tests.identify.product_faults import SHAPES, asked_of, call_of, given, said_of

MOST = settings(max_examples=draws(6, 200), deadline=None, derandomize=True)
WHERE = st.tuples(st.sampled_from(sorted(SHAPES)), st.sampled_from((0, 1)))
ROWS = st.sampled_from((1, 2, 8))
"""Tokens of the prompt: of one row alone columns are told by what a rule gives."""

WEIGHTS = st.sampled_from((0.0, 2.0, -1.0, 4.0, 0.5, 1.37))


def _down(where, rows, weights):
    """What is said where the feed-forward's last product sums its columns with these weights."""
    on = given(*where)
    case = call_of("swiglu", on, rows)
    g = case.arguments
    read = oracle._gated(g["x"] @ g["w_gate"].T, g["x"] @ g["w_up"].T)
    wrong = (read * weights) @ g["w_down"].T
    return said_of(asked_of(case, on, {"ffn_out": wrong})).best


def _q(where, rows, make):
    on = given(*where)
    case = call_of("qkv", on, rows)
    x, w = case.arguments["x"], case.arguments["wq"]
    return said_of(asked_of(case, on, {"q": make(x, w).reshape(len(x), 4, 16)})).best


@MOST
@drawn(WHERE, ROWS, WEIGHTS, st.data())
def test_a_run_of_columns(where, rows, weight, data):
    first = data.draw(st.integers(0, 94))
    end = data.draw(st.integers(first + 1, 96 if first else 95))
    weights = np.ones(96)
    weights[first:end] = weight
    found = _down(where, rows, weights)
    assert found is not None and found.explained
    assert np.allclose(found.parameters["columns"], weights, atol=1e-3)
    if weight or end - first <= 48:
        assert found.place.columns == ((first, end - 1),)


@MOST
@drawn(WHERE, ROWS, st.sampled_from((8, 16, 32)), st.data())
def test_tiles(where, rows, tile, data):
    n = 96 // tile
    chosen = data.draw(st.lists(st.sampled_from((0.0, 1.0, 2.0)), min_size=n, max_size=n))
    weights = np.repeat(chosen, tile)
    if (weights == weights[0]).all():
        return
    found = _down(where, rows, weights)
    assert found is not None and found.explained
    assert np.array_equal(found.parameters["columns"], weights)


@MOST
@drawn(WHERE, st.sampled_from((2, 8)), st.sampled_from((2, 4, 8)), st.data())
def test_lanes(where, rows, lanes, data):
    lane = data.draw(st.integers(0, lanes - 1))
    weights = np.where(np.arange(64) % lanes == lane, data.draw(st.sampled_from((0.0, 2.0))), 1.0)
    found = _q(where, rows, lambda x, w: (x * weights) @ w.T)
    assert found is not None and found.explained
    assert np.array_equal(found.parameters["columns"], weights)


@MOST
@drawn(WHERE, st.sampled_from((2, 8)), st.sets(st.integers(0, 63), min_size=1, max_size=20))
def test_any_columns_left_out(where, rows, columns):
    weights = np.ones(64)
    weights[list(columns)] = 0
    found = _q(where, rows, lambda x, w: (x * weights) @ w.T)
    assert found is not None and found.explained
    assert np.array_equal(found.parameters["columns"], weights)


@MOST
@drawn(WHERE, ROWS, st.sampled_from((2, 3, 4, 6, 8)), st.data())
def test_one_rank_alone(where, rows, ranks, data):
    rank = data.draw(st.integers(0, ranks - 1))
    weights = np.zeros(96)
    weights[rank * 96 // ranks : (rank + 1) * 96 // ranks] = 1
    found = _down(where, rows, weights)
    assert found is not None and found.explained
    assert f"rank {rank} of {ranks}" in found.sentence


@MOST
@drawn(WHERE, ROWS, st.data())
def test_columns_in_another_order(where, rows, data):
    order = data.draw(st.sampled_from(orders(64)))
    found = _q(where, rows, lambda x, w: x[:, order.taken] @ w.T)
    assert found is not None and found.explained
    assert np.array_equal(found.parameters["inputs"], order.taken)


@MOST
@drawn(WHERE, st.sampled_from((2, 8)), st.permutations(range(64)).filter(lambda p: p != sorted(p)))
def test_columns_in_any_order(where, rows, taken):
    found = _q(where, rows, lambda x, w: x[:, taken] @ w.T)
    assert found is not None and found.explained
    assert found.parameters["inputs"] == list(taken)


def test_one_order_of_all_three():
    """Of k and v alone too few outputs tell the order; q tells it for them."""
    on = given("scaled", 0)
    case = call_of("qkv", on)
    order = np.random.default_rng(0).permutation(64)
    x = case.arguments["x"][:, order]
    wrong = {
        point: lambda right, w=case.arguments[f"w{point}"]: (x @ w.T).reshape(right.shape) for point in "qkv"
    }
    found = said_of(asked_of(case, on, wrong)).best
    assert found is not None and found.explained
    assert found.sentence.startswith("q, k and v: ") and found.parameters["k"]["inputs"] == order.tolist()


@MOST
@drawn(WHERE, ROWS, st.sampled_from([one for one in FORMATS if one not in UNROUNDED and block_of(one) <= 64]))
def test_inputs_that_are_rounded(where, rows, name):
    found = _q(where, rows, lambda x, w: rounded(x, name) @ w.T)
    if found is None:  # finer than float32's own limits show, or on their edge
        x, w = given(*where)["blk.2.attn_norm"][:rows], given(*where).weights.blocks[2].wq
        limit = limit_for("blk.2.q", "float32", "own")
        assert distance(rounded(x, name) @ w.T, x @ w.T) < 1.5 * limit.row_err
        return
    assert found.explained
    assert name in (found.parameters["rounding"], *found.parameters["alike"])


@MOST
@drawn(WHERE, ROWS, st.sampled_from((0.125, 2.0, -1.0, 8**-0.5, 1.0009)))
def test_a_factor(where, rows, factor):
    found = _q(where, rows, lambda x, w: factor * (x @ w.T))
    assert found is not None and found.explained
    assert abs(found.parameters["factor"] - factor) < 1e-5


@MOST
@drawn(WHERE, st.sampled_from((2, 8)), st.integers(0, 1 << 30))
def test_a_bias(where, rows, seed):
    bias = np.random.default_rng(seed).standard_normal(64)
    found = _q(where, rows, lambda x, w: x @ w.T + bias)
    assert found is not None and found.explained
    assert np.allclose(found.parameters["bias"], bias, atol=1e-4)


@MOST
@drawn(WHERE, ROWS)
def test_the_transpose(where, rows):
    found = _q(where, rows, lambda x, w: x @ w)
    assert found is not None and found.explained
    assert found.kind == "product.transposed"


@MOST
@drawn(WHERE, ROWS, st.integers(0, 1 << 30))
def test_of_noise_nothing_is_said(where, rows, seed):
    noise = np.random.default_rng(seed).standard_normal((rows, 64))
    assert _q(where, rows, lambda x, w: x @ w.T + noise) is None


@MOST
@drawn(WHERE, st.sampled_from((2, 8)), st.integers(1, 60))
def test_a_sum_that_goes_on_past_its_rows(where, rows, more):
    def make(x, w):
        after = [np.concatenate([one[1:, :more], np.zeros((1, more))]) for one in (x, w)]
        return x @ w.T + after[0] @ after[1].T

    found = _q(where, rows, make)
    assert found is not None and found.explained
    assert found.parameters["numbers"] == more
