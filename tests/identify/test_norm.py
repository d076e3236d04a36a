"""What a norm did, drawn and recovered: its weight, what rows are divided by, its input, what was rounded."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_ckpt.identify.places import ranges
from llama_ckpt.identify.record import Around
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16
from tests.draws import draws
from tests.identify.attention_faults import found_in, normed_case

MOST = settings(max_examples=draws(12, 300), deadline=None, derandomize=True)
CASES = st.sampled_from([(width, n) for width in (32, 64, 160) for n in (2, 24)])
"""Width and tokens."""


def _best(case, made, around=None):
    best = found_in(case, {"ffn_norm": made}, around=around or Around()).best
    assert best is not None and best.explained
    return best


def _square(x):
    return np.mean(x * x, axis=-1, keepdims=True)


@MOST
@given(CASES, st.sampled_from((1e-2, 1.0)), st.sampled_from((1e-3, 1e-4, 3e-2)))
def test_epsilon(case, scale, eps):
    case = normed_case(*case, scale)
    x, weight = case.arguments["x"], case.arguments["weight"]
    best = _best(case, x / np.sqrt(_square(x) + eps) * weight)
    assert best.kind == "norm.epsilon" and best.parameters["epsilon"] == pytest.approx(eps, rel=2e-2)
    best = _best(case, x / (np.sqrt(_square(x)) + eps) * weight)
    assert "outside of the root" in best.sentence


@MOST
@given(CASES, st.data())
def test_the_width_of_the_mean(case, data):
    case = normed_case(*case, 1.0)
    x, weight = case.arguments["x"], case.arguments["weight"]
    last = data.draw(st.integers(1, x.shape[1] - 2))
    part = _square(x[:, : last + 1])
    best = _best(case, x / np.sqrt(part + 1e-5) * weight)
    assert best.parameters["last"] == last and "divided" not in best.sentence
    best = _best(case, x / np.sqrt(part * (last + 1) / x.shape[1] + 1e-5) * weight)
    assert best.parameters["last"] == last and f"divided by all {x.shape[1]}" in best.sentence


@MOST
@given(CASES, st.integers(-10, 10))
def test_weights(case, shift):
    case = normed_case(*case, 1.0)
    x, weight = case.arguments["x"], case.arguments["weight"]
    normed = x / np.sqrt(_square(x) + 1e-5)
    if shift:
        said = _best(case, normed * np.roll(weight, shift)).sentence
        assert f"shifted by {shift} feature" in said
    assert "1 + weight" in _best(case, normed * (1 + weight)).sentence
    other = np.random.default_rng(3).standard_normal(weight.shape) + 1
    blocks = [
        SimpleNamespace(attn_norm=weight, ffn_norm=weight),
        SimpleNamespace(attn_norm=other, ffn_norm=weight),
    ]
    around = Around(weights=SimpleNamespace(blocks=blocks, output_norm=weight))
    assert "the weight of blk.1.attn_norm" in _best(case, normed * other, around).sentence


@MOST
@given(CASES, st.data())
def test_a_part_that_was_not_normed(case, data):
    """A tile of features left as it was; only that part is said to be off."""
    case = normed_case(*case, 0.3)
    x, weight = case.arguments["x"], case.arguments["weight"]
    first = data.draw(st.integers(0, x.shape[1] - 4))
    last = min(first + data.draw(st.integers(0, x.shape[1] // 4)), x.shape[1] - 1)
    made = x / np.sqrt(_square(x) + 1e-5) * weight
    made[:, first : last + 1] = x[:, first : last + 1]
    best = _best(case, made)
    assert best.place.features == ((first, last),)
    assert "weight is forgotten" in best.sentence and "not divided" in best.sentence


def test_means_inputs_and_rows():
    case = normed_case(64, 24, 1.0)
    x, weight = case.arguments["x"], case.arguments["weight"]
    centred = x - x.mean(axis=-1, keepdims=True)
    assert "LayerNorm" in _best(case, centred / np.sqrt(_square(centred) + 1e-5) * weight).sentence
    assert "subtracts the mean" in _best(case, centred / np.sqrt(_square(x) + 1e-5) * weight).sentence
    other = np.random.default_rng(1).standard_normal(x.shape)
    best = _best(case, other / np.sqrt(_square(other) + 1e-5) * weight, Around(theirs={"attn_out": other}))
    assert "given attn_out instead of ffn_inp" in best.sentence
    made = x / np.sqrt(_square(x) + 1e-5) * weight
    made[5:] = (x / np.sqrt(_square(x[:1]) + 1e-5) * weight)[5:]
    best = _best(case, made)
    assert "the size of the first" in best.sentence and best.place.rows == ranges(range(5, 24))
    assert "instead of divided" in _best(case, x * np.sqrt(_square(x) + 1e-5) * weight).sentence


@pytest.mark.parametrize("name, rounded", [("bfloat16", to_bfloat16), ("float16", to_float16)])
def test_rounded(name, rounded):
    case = normed_case(64, 24, 1.0)
    x, weight = case.arguments["x"], case.arguments["weight"]
    low = rounded(x)
    best = _best(case, low / np.sqrt(_square(low) + 1e-5) * weight)
    assert best.sentence == f"the norm's input is rounded to {name}"
    best = _best(case, rounded(x / np.sqrt(_square(x) + 1e-5)) * weight)
    assert f"result before the weight is rounded to {name}" in best.sentence


def test_noise_is_no_norm():
    case = normed_case(64, 24, 1.0)
    wrong = np.random.default_rng(0).standard_normal((24, 64))
    found = found_in(case, {"ffn_norm": wrong})
    assert found.best is None and found.facts
