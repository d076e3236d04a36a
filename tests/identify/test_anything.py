"""What may happen in any operator: a region, one element, an overflow, rows of the embedding; drawn."""

from __future__ import annotations

import numpy as np
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from llama_ckpt.identify.identify import identify
from llama_ckpt.identify.record import Around, Asked
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.points import Case
from tests.draws import draws
from tests.identify.product_faults import SHAPES, asked_of, call_of, given, said_of

MOST = settings(max_examples=draws(6, 200), deadline=None, derandomize=True)
WHERE = st.tuples(st.sampled_from(sorted(SHAPES)), st.sampled_from((0, 1)))


def _changed(where, change, scale=1.0):
    """What is said where the gated product is changed."""
    on = given(*where)
    case = call_of("swiglu", on)
    if scale != 1:
        case = Case("swiglu", {**case.arguments, "x": scale * case.arguments["x"]}, case.returns, case.taps)
    with np.errstate(all="ignore"):
        return said_of(asked_of(case, on, {"ffn_swiglu": change})).best


@MOST
@drawn(WHERE, st.data())
def test_a_tile_that_is_not_computed(where, data):
    tile = data.draw(st.sampled_from((8, 16, 32)))
    first = tile * data.draw(st.integers(0, 96 // tile - 1))
    row = data.draw(st.integers(0, 7))

    def zeroed(x):
        made = x.copy()
        made[row:, first : first + tile] = 0
        return made

    found = _changed(where, zeroed)
    assert found is not None and found.explained
    assert found.place.features == ((first, first + tile - 1),)
    assert found.place.rows == (None if row == 0 else ((row, 7),))
    assert "zero" in found.sentence and "a tile of" in found.sentence


@MOST
@drawn(WHERE, st.integers(0, 7), st.integers(0, 95), st.floats(3, 9))
def test_one_element(where, row, feature, value):
    def struck(x):
        made = x.copy()
        made[row, feature] = value
        return made

    found = _changed(where, struck)
    assert found is not None and found.explained
    assert "one element is off" in found.sentence
    assert found.place.rows == ((row, row),) and found.place.features == ((feature, feature),)


@MOST
@drawn(WHERE, st.integers(1, 4), st.data())
def test_rows_that_were_there_before(where, by, data):
    first = data.draw(st.integers(max(by, 4), 7))

    def stale(x):
        made = x.copy()
        made[first:] = x[first - by : 8 - by]
        return made

    found = _changed(where, stale)
    assert found is not None and found.explained
    assert f"{by} rows before" in found.sentence


@MOST
@drawn(WHERE, st.floats(200, 400))
def test_an_overflow(where, scale):
    lost = []

    def overflown(x):
        lost.append(int((np.abs(x) >= 65520).sum()))
        return np.where(np.abs(x) >= 65520, np.copysign(np.inf, x), x)

    found = _changed(where, overflown, scale)
    if not lost[-1]:
        assert found is None
        return
    assert found is not None and found.explained
    assert f"{lost[-1]} elements" in found.sentence


def _embedded(where, make):
    on = given(*where)
    table, ids = on.weights.token_embd, on.token_ids
    case = Case("embed", {"token_ids": ids, "weight": table}, ("embd",))
    evidence = Evidence(
        "embd", np.float32(make(table, ids)), table[ids], limit_for("embd", "float32", "own"), case
    )
    return identify(Asked([evidence], Around(on.config, on.weights, {}, tuple(on.token_id_list)))).best


@MOST
@drawn(WHERE, st.lists(st.integers(3, 319), min_size=8, max_size=8))
def test_rows_of_other_tokens(where, tokens):
    own = given(*where).token_ids
    found = _embedded(where, lambda table, ids: table[tokens])
    if list(own) == tokens:
        assert found is None
        return
    assert found is not None and found.explained


@MOST
@drawn(WHERE, st.sampled_from((8.0, 2.0, 0.5, 1.1)))
def test_an_embedding_that_is_multiplied(where, factor):
    found = _embedded(where, lambda table, ids: factor * table[ids])
    assert found is not None and found.explained
    assert abs(found.parameters["factor"] - factor) < 1e-4


def test_an_embedding_taken_from_the_head():
    on = given("alike", 0)
    found = _embedded(("alike", 0), lambda table, ids: on.weights.output[ids])
    assert found is not None and "from the head's table" in found.sentence


def test_a_right_embedding():
    assert _embedded(("alike", 0), lambda table, ids: table[ids]) is None
