"""What an attention did, drawn and recovered: keys seen, heads read, more in the sum, scale, what is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_ckpt.identify.places import ranges
from tests.draws import draws
from tests.identify.attention_faults import SHAPES, attended, attention_case, found_in

MOST = settings(max_examples=draws(10, 300), deadline=None, derandomize=True)
PROMPTS = st.sampled_from((7, 20))
HIDDEN = st.sampled_from(((), ("attn_scores",), ("attn_scores", "attn_probs")))
"""What was not recorded."""


def _best(case, made, hidden=()):
    best = found_in(case, made, hidden=hidden).best
    assert best is not None and best.explained
    return best


def _seen(best):
    n = len(best.parameters["keys_seen"])
    made = np.zeros((n, n), bool)
    for row, runs in enumerate(best.parameters["keys_seen"]):
        for first, last in runs:
            made[row, first : last + 1] = True
    return made


@MOST
@given(st.sampled_from(SHAPES), PROMPTS, HIDDEN, st.data())
def test_intervals_of_keys(shape, n, hidden, data):
    """Each row of a run sees keys from one to another, by whatever rule."""
    case = attention_case(shape, n)
    row, key = np.arange(n)[:, None], np.arange(n)
    rule = data.draw(st.sampled_from(("window", "later", "reset", "top left", "no mask")))
    k = data.draw(st.integers(1, n - 2))
    seen = {
        "window": (key <= row) & (row - key < k),
        "later": key <= row + k,
        "reset": (key <= row) & ~((row >= k) & (key < k)),
        "top left": np.where(row >= k, key <= row - k, key <= row),
        "no mask": np.ones((n, n), bool),
    }[rule]
    best = _best(case, attended(case, seen=seen), hidden)
    assert (_seen(best) == seen).all()
    words = {"window": "last", "later": "off by", "reset": "no earlier key", "top left": "top left"}
    said = {"no mask": "no causal mask"} | words
    every = " ".join((best.sentence, *best.alike))
    assert said[rule] in every or "itself only" in every or "no causal mask" in every


@MOST
@given(st.sampled_from(SHAPES), PROMPTS, st.data())
def test_any_set_of_keys(shape, n, data):
    """Probabilities tell the keys of each row, whichever they are."""
    case = attention_case(shape, n)
    drawn = np.array(data.draw(st.lists(st.booleans(), min_size=n * n, max_size=n * n))).reshape(n, n)
    seen = (drawn & np.tril(np.ones((n, n), bool))) | np.eye(n, dtype=bool)
    if (seen == np.tril(np.ones((n, n), bool))).all():
        return
    best = _best(case, attended(case, seen=seen))
    assert (_seen(best) == seen).all()
    assert best.place.keys == ranges(np.flatnonzero((seen != np.tril(seen | True)).any(axis=0)))


@MOST
@given(st.sampled_from(SHAPES[:2]), PROMPTS, HIDDEN, st.data())
def test_heads(shape, n, hidden, data):
    heads, kv_heads, _ = shape
    case = attention_case(shape, n)
    own = np.arange(heads) // (heads // kv_heads)
    one = st.lists(st.integers(0, kv_heads - 1), min_size=heads, max_size=heads)
    reads = np.array(data.draw(one))
    values = data.draw(st.sampled_from((reads, own)))
    if (reads == own).all():
        return
    best = _best(case, attended(case, reads=reads, values=values), hidden)
    assert best.kind == "attention.heads" and best.place.heads == ranges(np.flatnonzero(reads != own))
    assert ("right values" in best.sentence or "other values" in best.sentence) == (values is own)


@MOST
@given(st.sampled_from(SHAPES), PROMPTS, HIDDEN, st.integers(1, 40))
def test_lanes_in_the_sum(shape, n, hidden, lanes):
    case = attention_case(shape, n)
    best = _best(case, attended(case, more=float(lanes)), hidden)
    every = " ".join((best.sentence, *best.alike))
    assert f"{lanes} more term" in every or "multiple of" in every


@MOST
@given(st.sampled_from(SHAPES), PROMPTS, HIDDEN, st.floats(0.02, 1.5))
def test_scales(shape, n, hidden, scale):
    case = attention_case(shape, n)
    if abs(scale * shape[2] ** 0.5 - 1) < 0.02:
        return
    best = _best(case, attended(case, scale=scale), hidden)
    assert best.kind == "attention.scale" and best.parameters.get("scale", scale) == pytest.approx(
        scale, rel=1e-3
    )


@MOST
@given(st.sampled_from(SHAPES), PROMPTS, st.data())
def test_keys_that_nobody_recorded(shape, n, data):
    """Each row gives a part of its sum to keys outside of the dump."""
    case = attention_case(shape, n)
    size = shape[0] * n
    more = np.array(data.draw(st.lists(st.floats(0.05, 20), min_size=size, max_size=size)))
    made = attended(case, more=more.reshape(shape[0], n, 1))
    noise = np.random.default_rng(0).standard_normal(made["attn_context"].shape)
    made["attn_context"] = made["attn_context"] + noise
    made["attn_out"] = made["attn_context"] @ case.arguments["wo"].T
    best = _best(case, made)
    assert best.kind == "attention.extra-keys"


@pytest.mark.parametrize("hidden", [(), ("attn_scores", "attn_probs")])
def test_rows_that_see_nothing(hidden):
    n = 9
    case = attention_case(SHAPES[0], n)
    with np.errstate(all="ignore"):
        made = attended(case, seen=np.tril(np.ones((n, n), bool), -1))
    best = _best(case, made, hidden)
    assert best.kind == "attention.nothing-seen" and best.place.rows == ((0, 0),)
    assert "does not see itself" in best.sentence


def test_slots_of_a_cache():
    n = 20
    case = attention_case(SHAPES[1], n)
    late = np.r_[0, np.arange(n - 1)]
    arguments = dict(case.arguments)
    for name in "kv":
        arguments[name] = case.arguments[name][late].copy()
        arguments[name][0] = 0
    made = attended(type(case)("attention", arguments, case.returns, case.taps))
    best = _best(case, made)
    assert best.parameters["keys"] == [-1, *range(n - 1)]
    assert "1 place later" in best.sentence and "key 0 is zero" in best.sentence


def test_features_left_out_of_the_scores():
    case = attention_case(SHAPES[1], 20)
    arguments = dict(case.arguments)
    arguments["q"] = case.arguments["q"].copy()
    arguments["q"][..., 12:] = 0
    made = attended(type(case)("attention", arguments, case.returns, case.taps))
    assert "features 12 to 15 are left out" in _best(case, made).sentence


def test_noise_is_no_attention():
    case = attention_case(SHAPES[1], 20)
    rng = np.random.default_rng(0)
    for point, shape in (("attn_scores", (20, 8, 20)), ("attn_context", (20, 128))):
        found = found_in(case, {point: rng.standard_normal(shape)})
        assert found.best is None and found.facts, point
