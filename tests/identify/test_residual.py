"""What a residual sum was made of, and whose block it was: drawn, and recovered as drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from llama_ckpt.diagnose.patched_oracle import PatchedOracle
from llama_ckpt.identify.identify import identify
from llama_ckpt.identify.record import Around, Asked
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import BLOCK_POINTS, Case
from tests.draws import draws
from tests.identify.product_faults import BLOCK, SHAPES, given

MOST = settings(max_examples=draws(6, 200), deadline=None, derandomize=True)
WHERE = st.tuples(st.sampled_from(sorted(SHAPES)), st.sampled_from((0, 1)), st.sampled_from((2, 8)))
POINTS = [point.name for point in BLOCK_POINTS]


def _found(where, added: Callable[..., Any], first: str, *, only_end: bool = False, weights: Any = None):
    """What is said of a block with other residual sums, or with other weights."""
    on = given(*where[:2])
    n = where[2]
    own = on.weights.blocks[BLOCK]
    arguments = {
        "x": on[f"blk.{BLOCK - 1}.out"][:n],
        "weights": own,
        "config": on.config,
        "positions": on.positions[:n],
    }
    case = Case("block", arguments, (f"blk.{BLOCK}.out",), {p: f"blk.{BLOCK}.{p}" for p in POINTS[:-1]})
    right = case.run(oracle.block)
    program = PatchedOracle({"added": added})
    wrong = Case("block", {**arguments, "weights": weights or own}, case.returns, case.taps)
    theirs = wrong.run(program.block)
    points = ["out"] if only_end else [first, *(p for p in POINTS if p != first)]
    evidence = []
    for point in points:
        name = f"blk.{BLOCK}.{point}"
        if not point.endswith(("scores", "probs")):
            limit = limit_for(name, "float32", "own")
            evidence.append(Evidence(name, theirs[name].astype(np.float32), right[name], limit, case))
    inside = {one.name.rpartition(".")[2]: one.x for one in evidence}
    return identify(Asked(evidence, Around(on.config, on.weights, inside, tuple(on.token_id_list)))).best


def _sums(first, second):
    """Stands for the oracle's sum: how often each of the two terms is in the first and in the second one."""
    calls = []

    def added(right, x, y):
        a, b = (first, second)[len(calls) % 2]
        calls.append(1)
        return a * x + b * y

    return added


WEIGHTS = st.sampled_from((0.0, 1.0, 2.0, 4.0, 8.0, 0.5, -1.0, 0.22))


@MOST
@drawn(WHERE, WEIGHTS, WEIGHTS)
def test_weights_of_the_first_sum(where, a, b):
    if (a, b) == (1, 1) or (a, b) == (0, 0):
        return
    found = _found(where, _sums((a, b), (1, 1)), "ffn_inp")
    assert found is not None and found.explained
    terms = found.parameters["terms"]
    assert terms.get("in", 0) == pytest.approx(a, abs=1e-4)
    assert terms.get("attn_out", 0) == pytest.approx(b, abs=1e-4)


@MOST
@drawn(WHERE, WEIGHTS, WEIGHTS)
def test_weights_of_the_second_sum(where, a, b):
    if (a, b) == (1, 1) or (a, b) == (0, 0):
        return
    found = _found(where, _sums((1, 1), (a, b)), "out")
    assert found is not None and found.explained
    terms = found.parameters["terms"]
    assert terms.get("ffn_inp", 0) == pytest.approx(a, abs=1e-4)
    assert terms.get("ffn_out", 0) == pytest.approx(b, abs=1e-4)


@MOST
@drawn(WHERE, st.sampled_from((2.0, 4.0, 8.0)))
def test_both_sums(where, ranks):
    found = _found(where, _sums((ranks, 1), (ranks, 1)), "ffn_inp")
    assert found is not None and found.explained
    assert "ffn_inp: the block's input" in found.sentence and "out: ffn_inp" in found.sentence


@MOST
@drawn(WHERE, st.data())
def test_another_blocks_weights_by_its_end(where, data):
    on = given(*where[:2])
    number = data.draw(st.sampled_from([b for b in range(on.config.n_layers) if b != BLOCK]))
    found = _found(where, _sums((1, 1), (1, 1)), "out", only_end=True, weights=on.weights.blocks[number])
    assert found is not None and found.explained
    assert found.parameters == {"block": number}


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_block_left_out(shape):
    found = _found((shape, 0, 8), _sums((1, 0), (1, 0)), "out", only_end=True)
    assert found is not None and "left out" in found.sentence


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_right_block(shape):
    assert _found((shape, 0, 8), _sums((1, 1), (1, 1)), "ffn_inp") is None
