"""What a tie that falls the other way may leave, a rule at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llama_ckpt.arithmetic.formats import rounded
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.comparing.declared import Declared, wider
from llama_ckpt.comparing.falls import fallen, of_both, through
from llama_ckpt.judging.limits import limit_for, within
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.verdict import judge

NAME = "blk.0.out"
STEP = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
"""From 1 to the next number."""


def verdict(x: Any, unrounded: Any, kind: str, deviation: float = 2.0**-24) -> str:
    """Of a result that is rounded, beside what may fall."""
    declared = Declared(Arithmetic(residual=kind))
    o = rounded(unrounded, kind)
    spread = Spread(deviation * np.abs(unrounded))
    spread = wider(spread, declared.result_ties("out", unrounded, spread), o)
    limit = within(limit_for(NAME, "float32", "own"), spread, o)
    return judge(NAME, x.astype(np.float32), o, limit=limit, dtype="float32").verdict


@pytest.mark.parametrize("kind", STEP)
@pytest.mark.parametrize("width", [1, 8, 64])
def test_a_row_that_is_one_fall_of_a_tie_is_right(kind: str, width: int) -> None:
    """All that is off in the tensor is one element, by a whole step."""
    unrounded = np.ones((3, width))
    unrounded[1, 0] = 1 + STEP[kind] / 2  # in the middle of two: falls to 1, as even
    x = rounded(unrounded, kind)
    assert x[1, 0] == 1
    assert verdict(x, unrounded, kind) == "pass"
    x[1, 0] = 1 + STEP[kind]
    assert verdict(x, unrounded, kind) == "pass"
    x[1, 0] = 1 + 2 * STEP[kind]  # further than its neighbour
    assert verdict(x, unrounded, kind) == "fail"


@pytest.mark.parametrize("kind", STEP)
def test_what_is_in_no_middle_may_not_fall(kind: str) -> None:
    unrounded = np.ones((3, 8))
    unrounded[1, 0] = 1 + 0.4 * STEP[kind]
    x = rounded(unrounded, kind)
    x[1, 0] = 1 + STEP[kind]
    assert verdict(x, unrounded, kind) == "fail"


def test_activations_fall_to_their_neighbour_and_no_further() -> None:
    x = np.array([[1 + STEP["float16"] / 2, 1 + STEP["float16"] / 4, 1.0]])
    assert fallen(x, None, "float32") is None
    falls = fallen(x, None, "float16")
    assert falls is not None
    assert falls.tolist() == [[STEP["float16"], 0.0, 0.0]]
    weight = np.array([[2.0, 5.0, 7.0], [-3.0, 1.0, 1.0]])
    assert np.asarray(through(falls, weight)).tolist() == [[2 * STEP["float16"], 3 * STEP["float16"]]]
    assert through(np.zeros((1, 3)), weight) is None


def test_what_moves_with_what_came_before_has_not_fallen() -> None:
    """Where a number was moved by many steps, its rounding moves as much."""
    x = np.array([[1.0, 1.7, 0.3]])
    falls = fallen(x, np.full(x.shape, 100 * STEP["float16"]), "float16")
    assert falls is not None and not falls.any()


def test_a_product_of_what_is_off_together_takes_what_may_fall_besides() -> None:
    spread = Spread(np.array([3.0]), most=np.array([4.0]), apart=np.array([1.0]))
    assert spread.beside_mode.tolist() == [np.hypot(1.0, 4.0)]


def test_the_largest_of_a_row_sets_its_scale_and_does_not_move() -> None:
    x = np.array([[127.0, 12.5, 3.2]])
    falls = fallen(x, None, "int8 per row")
    assert falls is not None
    assert falls[0, 0] == 0 and falls[0, 1] == pytest.approx(1.0) and falls[0, 2] == 0


def test_many_that_fall_add_up_as_chance_has_it() -> None:
    rng = np.random.default_rng(0)
    off, w = np.full((1, 4000), 1e-3), rng.standard_normal((5, 4000))
    made = through(off, w)
    assert made is not None
    assert (made < 0.1 * np.abs(w).sum(axis=1) * 1e-3).all()
    assert (made > 2 * 1e-3 * np.sqrt(np.square(w).sum(axis=1))).all()


def test_a_query_or_a_key_that_fell_moves_each_of_their_scores() -> None:
    q, k = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])
    a, b = np.array([[0.5, 0.0]]), np.array([[0.0, 0.25], [0.0, 0.0]])
    assert np.asarray(of_both(a, q, None, k)).tolist() == [[1.5, 2.5]]
    assert np.asarray(of_both(a, q, b, k)).tolist() == [[2.0, 2.5]]
    assert of_both(None, q, None, k) is None


def test_a_score_that_fell_moves_the_others_of_its_row() -> None:
    """By the sum that divides them all."""
    declared = Declared(Arithmetic(scaled="float16"))
    scores = np.array([[[2 + STEP["float16"], 0.0, 0.0]]])  # of heads of 1, in the middle of two
    probs = np.exp(scores) / np.exp(scores).sum()
    found = declared.probability_ties(scores, 1, probs, None)
    assert found is not None
    fell = scores.copy()
    fell[0, 0, 0] = 2 + 2 * STEP["float16"]
    other = np.exp(fell) / np.exp(fell).sum()
    down = scores.copy()
    down[0, 0, 0] = 2.0
    apart = np.abs(other - np.exp(down) / np.exp(down).sum())
    assert (found >= 0.99 * apart).all() and (apart > 0).all()
    assert (found < 10 * apart).all()
