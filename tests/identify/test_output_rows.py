"""Outputs that are other rows: orders, heads, runs, whole matrices; drawn, and recovered as drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from llama_ckpt.identify.permutations import orders
from tests.draws import draws
from tests.identify.product_faults import SHAPES, Array, asked_of, call_of, given, said_of

SEEDS = (0, 1)
MOST = settings(max_examples=draws(6, 200), deadline=None, derandomize=True)
WHERE = st.tuples(st.sampled_from(sorted(SHAPES)), st.sampled_from(SEEDS))


def _with(w: Array, point: str, where: tuple[str, int], function: str = "qkv"):
    """What is said where a product is made with w."""
    on = given(*where)
    case = call_of(function, on)
    x = np.asarray(case.arguments["x"])
    return said_of(asked_of(case, on, {point: lambda right: (x @ w.T).reshape(right.shape)}))


def _weights(where: tuple[str, int]):
    on = given(*where)
    return on, on.weights.blocks[2]


@MOST
@drawn(WHERE, st.data())
def test_an_order_is_recovered(where, data):
    on, w = _weights(where)
    order = data.draw(st.sampled_from(orders(64, 4)))
    found = _with(w.wq[order.taken], "q", where).best
    assert found is not None and found.explained
    assert np.array_equal(found.parameters["rows"], order.taken)
    assert found.free_numbers <= order.numbers, found.sentence


@MOST
@drawn(WHERE, st.permutations(range(96)).filter(lambda taken: taken != sorted(taken)))
def test_any_permutation_is_recovered(where, taken):
    on, w = _weights(where)
    found = _with(w.w_up[taken], "ffn_up", where, "swiglu").best
    assert found is not None and found.explained
    assert found.parameters["rows"] == list(taken)


@MOST
@drawn(WHERE, st.data())
def test_a_run_of_another_matrix_is_recovered(where, data):
    on, w = _weights(where)
    first = data.draw(st.integers(0, 80))
    length = data.draw(st.integers(1, 96 - first))
    row = data.draw(st.integers(0, 96 - length))
    mixed = w.w_gate.copy()
    mixed[first : first + length] = w.w_up[row : row + length]
    found = _with(mixed, "ffn_gate", where, "swiglu").best
    assert found is not None and found.explained
    if length < 96:
        rows = np.arange(96)
        rows[first : first + length] = row + np.arange(length)
        assert row == first or found.parameters["rows"] == rows.tolist()
        assert found.place.features == ((first, first + length - 1),)
    assert "w_up" in found.sentence


@MOST
@drawn(WHERE, st.data())
def test_the_block_whose_matrix_it_is(where, data):
    on = given(*where)
    block = data.draw(st.sampled_from([b for b in range(on.config.n_layers) if b != 2]))
    point, field = data.draw(st.sampled_from([("q", "wq"), ("k", "wk"), ("v", "wv")]))
    found = _with(getattr(on.weights.blocks[block], field), point, where).best
    assert found is not None and found.explained
    assert found.parameters == {"matrix": field, "block": block}


@MOST
@drawn(WHERE, st.data())
def test_outputs_that_stay_zero(where, data):
    on, w = _weights(where)
    first = data.draw(st.integers(0, 63))
    last = data.draw(st.integers(first, 63))
    zeroed = w.wq.copy()
    zeroed[first : last + 1] = 0
    found = _with(zeroed, "q", where).best
    assert found is not None and found.explained
    if last - first < 63:
        assert found.kind == "product.zero"


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_nothing_is_said_of_a_right_product(shape):
    on = given(shape, 0)
    for function, point in (("qkv", "q"), ("swiglu", "ffn_gate"), ("attention", "attn_out")):
        found = said_of(asked_of(call_of(function, on), on, {point: lambda right: right}))
        assert not found.found


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_fused_matrix_cut_evenly_over_ranks(shape, ranks):
    on, w = _weights((shape, 0))
    parts = np.concatenate([w.w_gate, w.w_up]).reshape(ranks, 2, -1, 64)
    case = call_of("swiglu", on)
    x = np.asarray(case.arguments["x"])
    wrong = {p: x @ parts[:, i].reshape(96, 64).T for i, p in enumerate(("ffn_gate", "ffn_up"))}
    best = said_of(asked_of(case, on, wrong)).best
    assert best is not None and best.explained
    assert "of w_up" in best.sentence and "of w_gate" in best.sentence
    assert "fused" in best.code
