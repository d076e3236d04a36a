"""What a rotation did, drawn and recovered: positions, frequencies, pairs, heads, what was rounded."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_ckpt.identify.places import ranges
from llama_ckpt.identify.record import Around, Identified
from llama_ckpt.identify.rope_formulas import FORMULAS
from llama_ckpt.identify.rope_numbers import llama3_scaled
from llama_ckpt.identify.rope_scalings import yarn_scaled
from llama_ckpt.identify.turns import layouts, turned
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16
from tests.draws import draws
from tests.identify.attention_faults import SHAPES, found_in, rope_case

MOST = settings(max_examples=draws(12, 300), deadline=None, derandomize=True)
PROMPTS = st.sampled_from(((9, 0), (24, 100)))
"""Tokens, and the position of the first."""


def _best(case, cos_and_sin, points="qk", heads=None, layout=0, around=None) -> Identified:
    """The explanation of q and k, or one of them, turned by this table in some heads."""
    cos, sin = cos_and_sin
    pairs = list(layouts(case.arguments["q"].shape[-1]))[layout]
    wrong = {}
    for point in points:
        x, right = (
            case.arguments[point],
            (case.arguments["positions"][:, None] * case.arguments["frequencies"]),
        )
        made = turned(x, list(layouts(x.shape[-1]))[0], np.cos(right), np.sin(right))
        chosen = slice(None) if heads is None else heads
        made[:, chosen] = turned(x, pairs, cos, sin)[:, chosen]
        wrong[f"{point}_rope"] = made
    best = found_in(case, wrong, around=around or Around()).best
    assert best is not None and best.explained
    return best


def _table(angles):
    return np.cos(angles), np.sin(angles)


@MOST
@given(st.sampled_from(SHAPES), PROMPTS, st.data())
def test_positions_of_runs(shape, prompt, data):
    """Runs of rows, each with an offset of its own."""
    case = rope_case(shape, *prompt)
    own = case.arguments["positions"]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(own) - 1), max_size=3)))
    steps = data.draw(st.lists(st.integers(-5, 40), min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    at = own + np.repeat(steps, np.diff([0, *cuts, len(own)]))
    if (at == own).all() or (at * own == 0).all() and (at == own)[own != 0].all():
        return
    best = _best(case, _table(at[:, None] * case.arguments["frequencies"]))
    assert best.parameters["positions"] == at.tolist()
    assert best.kind.startswith(("rope.positions", "rope.none"))
    wrong = np.flatnonzero(at != own)
    assert best.place.rows == (None if len(wrong) == len(own) else ranges(wrong))


@MOST
@given(st.sampled_from(SHAPES), PROMPTS, st.data())
def test_positions_in_any_order(shape, prompt, data):
    case = rope_case(shape, *prompt)
    at = np.array(data.draw(st.permutations(case.arguments["positions"].tolist())))
    if (at == case.arguments["positions"]).all():
        return
    best = _best(case, _table(at[:, None] * case.arguments["frequencies"]))
    assert best.parameters["positions"] == at.tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "rule, said",
    [
        (lambda at: at * 0, "nothing is turned"),
        (lambda at: at * 0 + 5, "as if it stood at position 5"),
        (lambda at: -at, "turned the other way"),
        (lambda at: at % 8, "begin again at 0 every 8 positions"),
        (lambda at: (at - at[0]) % 8, "begin again at 0 every 8 rows"),
        (lambda at: np.minimum(at, at[0] + 9), "positions end at 109"),
        (lambda at: at[::-1], "run backwards"),
        (lambda at: at - at[0], "counted from 0 in this call, where it begins at 100"),
        (lambda at: at // 3, "positions are divided by 3"),
        (lambda at: at + 3, "3 positions later: from 103 on instead of 100"),
    ],
)
def test_positions_by_a_rule(shape, rule, said):
    case = rope_case(shape, 24, 100)
    at = rule(case.arguments["positions"])
    assert said in _best(case, _table(at[:, None] * case.arguments["frequencies"])).sentence


@pytest.mark.parametrize(
    "dtype, rounded, first", [("bfloat16", to_bfloat16, 300), ("float16", to_float16, 2500)]
)
def test_rounded_positions(dtype, rounded, first):
    case = rope_case(SHAPES[1], 24, first)
    at = rounded(case.arguments["positions"].astype(float))
    best = _best(case, _table(at[:, None] * case.arguments["frequencies"]))
    assert best.kind == "rope.positions-rounded" and dtype in best.sentence


@MOST
@given(st.sampled_from(SHAPES), PROMPTS, st.floats(3, 7).map(lambda log: float(f"{10**log:.4g}")))
def test_theta(shape, prompt, theta):
    case = rope_case(shape, *prompt)
    d = shape[2]
    if abs(theta / 1e4 - 1) < 1e-2:
        return
    best = _best(case, _table(case.arguments["positions"][:, None] * theta ** (-np.arange(0, d, 2) / d)))
    assert best.kind == "rope.theta" and best.free_numbers == 1
    assert best.parameters["theta"] == pytest.approx(theta, rel=2e-3)


@MOST
@given(st.sampled_from(SHAPES), PROMPTS, st.data())
def test_pairs_in_another_order(shape, prompt, data):
    case = rope_case(shape, *prompt)
    pairs = shape[2] // 2
    order = data.draw(st.permutations(range(pairs)))
    if order == sorted(order):
        return
    best = _best(
        case, _table(case.arguments["positions"][:, None] * case.arguments["frequencies"][list(order)])
    )
    assert best.kind == "rope.order" and best.parameters["pairs"] == list(order)


def test_scalings_of_known_kinds():
    case = rope_case(SHAPES[2], 24, 4000)
    at, own = case.arguments["positions"][:, None], case.arguments["frequencies"]
    for factor, context in ((8.0, 8192), (32.0, 8192)):
        best = _best(case, _table(at * llama3_scaled(own, factor, context=context)))
        assert f"scaled by {factor:g} as Llama 3.1's" in best.sentence
    best = _best(case, _table(at * yarn_scaled(own, 4.0, 4096)))
    assert best.parameters == {**best.parameters, "factor": 4.0, "original_context": 4096}
    assert "YaRN" in best.sentence
    best = _best(case, _table(at * own / 4))
    assert "scaled linearly by 4" in best.sentence


def test_a_scaling_of_other_numbers_than_the_file_has():
    case = rope_case(SHAPES[2], 24, 4000)
    pairs = SHAPES[2][2] // 2
    theta = float(case.arguments["frequencies"][1] ** -pairs)
    plain = theta ** (-np.arange(pairs) / pairs)
    own = llama3_scaled(plain, 8.0)
    case = replace(case, arguments={**case.arguments, "frequencies": own})
    config = SimpleNamespace(rope_theta=theta, rope_factors=tuple(plain / own), rope_scale=1.0)
    at = case.arguments["positions"][:, None]
    for made, said in (
        (plain, "are missing"),
        (llama3_scaled(plain, 32.0), "factor 32 instead of 8"),
        (plain / 8, "taken as linear|every pair is slowed by 8"),
    ):
        best = _best(case, _table(at * made), around=Around(config=config))
        assert re.search(said, " ".join((best.sentence, *best.alike))), best.sentence


@pytest.mark.parametrize("words, formula", FORMULAS)
def test_a_rotation_of_another_formula(words, formula):
    case = rope_case(SHAPES[0], 9)
    angles = case.arguments["positions"][:, None] * case.arguments["frequencies"]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    wrong = {}
    for point in "qk":
        made = np.array(case.arguments[point])
        made[..., 0::2], made[..., 1::2] = formula(made[..., 0::2], made[..., 1::2], cos, sin)
        wrong[f"{point}_rope"] = made
    best = found_in(case, wrong).best
    assert best is not None and best.explained
    assert words in best.sentence


def test_what_the_file_says_and_the_program_does_not():
    case = rope_case(SHAPES[2], 24)
    own = case.arguments["frequencies"]
    factors = own / llama3_scaled(own, 8.0)
    case = rope_case(SHAPES[2], 24)
    arguments = {**case.arguments, "frequencies": own / factors}
    config = SimpleNamespace(rope_factors=tuple(factors), rope_scale=1.0, context_length=8192)
    case = type(case)("rope", arguments, case.returns)
    best = _best(case, _table(arguments["positions"][:, None] * own), around=Around(config))
    assert "Llama 3's scaling, are missing" in best.sentence and best.free_numbers == 0


@MOST
@given(st.sampled_from(SHAPES[:2]), PROMPTS, st.sampled_from("qk"), st.data())
def test_some_heads_of_one_tensor(shape, prompt, point, data):
    case = rope_case(shape, *prompt)
    n = case.arguments[point].shape[1]
    heads = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n - 1)))
    angles = (case.arguments["positions"][:, None] + 2) * case.arguments["frequencies"]
    best = _best(case, _table(angles), point, heads)
    assert best.place.heads == ranges(heads) and f"in {point} head" in best.sentence


@MOST
@given(st.sampled_from(SHAPES), PROMPTS, st.integers(-3, 5))
def test_other_pairs(shape, prompt, offset):
    case = rope_case(shape, *prompt)
    angles = (case.arguments["positions"][:, None] + offset) * case.arguments["frequencies"]
    best = _best(case, _table(angles), layout=1)
    assert "pairs (i, i+d/2)" in best.sentence and (("later" in best.sentence) == (offset > 0))


STEPS = ("positions", "frequencies", "angles", "table of cosines and sines")


@MOST
@given(
    st.sampled_from(SHAPES),
    st.sampled_from((to_bfloat16, to_float16)),
    st.sets(st.sampled_from(STEPS), min_size=1),
)
def test_rounded_steps(shape, rounded, steps):
    """Any combination; where fewer steps give the same numbers, those are said."""
    case = rope_case(shape, 24, 2500)

    def kept(x, step):
        return rounded(np.asarray(x, float)) if step in steps else x

    at, f = kept(case.arguments["positions"], STEPS[0]), kept(case.arguments["frequencies"], STEPS[1])
    angles = kept(np.asarray(at)[:, None] * f, STEPS[2])
    best = _best(case, (kept(np.cos(angles), STEPS[3]), kept(np.sin(angles), STEPS[3])))
    assert best.kind in ("rope.rounded", "rope.positions-rounded")
    assert set(best.parameters.get("rounded", ["positions"])) <= steps


def test_a_gain():
    case = rope_case(SHAPES[1], 9)
    right = case.arguments["positions"][:, None] * case.arguments["frequencies"]
    cos, sin = _table(right)
    best = _best(case, (1.1386 * cos, 1.1386 * sin))
    assert "multiplied by 1.1386" in best.sentence


def test_noise_is_no_rotation():
    case = rope_case(SHAPES[1], 24)
    rng = np.random.default_rng(0)
    angles = case.arguments["positions"][:, None] * case.arguments["frequencies"]
    for size in (1e-5, 1e-2, 1.0):
        right = turned(case.arguments["q"], next(layouts(16)), *_table(angles))
        wrong = right + size * rng.standard_normal(right.shape)
        found = found_in(case, {"q_rope": wrong})
        assert found.best is None and found.facts
