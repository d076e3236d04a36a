"""Two bugs of one function at once, and explanations that explain nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llama_ckpt.diagnose.bugs import Bug, catalogue
from llama_ckpt.diagnose.diagnosis import diagnose_point
from llama_ckpt.diagnose.patched_oracle import RIGHT, PatchedOracle
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.points import Case
from tests.comparing.prompts import bench, rope_case

BUGS = {bug.name: bug for bug in catalogue()}


def diagnosed(x: Any, case: Case, point: str) -> Any:
    o = RIGHT.answers(case)[point]
    return diagnose_point(point, x, o, limit=limit_for(point, "float32", "own"), case=case)


PAIRS = {
    ("norm-weight-missing", "norm-mean-subtracted"): "1",
    ("rope-half-split", "rope-frequencies-bfloat16"): "1B",
    ("rope-angle-negative", "rope-table-float16"): "1B",
    ("ffn-gate-up-swapped", "ffn-gelu-tanh"): "6",
}


@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_two_bugs_are_named_together(names: tuple[str, str]) -> None:
    outer, inner = (BUGS[name] for name in names)
    case = next(case for case in bench().cases[PAIRS[names]] if case.function == outer.function)
    if outer.function == "rope":
        case = rope_case(n=200)
    both = PatchedOracle({outer.function: outer.patch}, inner.oracle)
    point = case.returns[0]
    found = diagnosed(both.answers(case)[point].astype(np.float32), case, point)
    assert found.named[0].explained and set(found.named[0].name.split("+")) == set(names)
    said = found.sentence().partition(": remaining error ")[0]
    either = (f"{a.sentence}, and {b.sentence}" for a, b in ((outer, inner), (inner, outer)))
    assert said in either


def test_a_bug_that_leaves_the_tensor_as_it_was_explains_nothing() -> None:
    """Something else is off by a little more than rounding; what moves it by far less is not to blame."""
    case = rope_case(n=8)
    o = RIGHT.answers(case)["blk.0.q_rope"]
    limit = limit_for("q_rope", "float32", "own")
    x = (o * (1 + 1.5 * limit.gain)).astype(np.float32)

    def hardly(right: PatchedOracle, q: Any, k: Any, at: Any, f: Any, tap: Any = None) -> Any:
        return tuple(y * (1 + limit.gain) for y in right.rope(q, k, at, f))

    faint = Bug("rope-faint", "RoPE is hardly changed", "1B", "rope", hardly)
    found = diagnose_point("blk.0.q_rope", x, o, limit=limit, case=case, among=[faint])
    assert found.err < limit.err and not found.named


def test_the_models_own_number_is_no_explanation() -> None:
    """A tensor that is off by something else, whatever else would fit."""
    case = rope_case(n=40)
    noise = np.random.default_rng(1).standard_normal((40, 4, 16))
    o = RIGHT.answers(case)["blk.0.q_rope"]
    for size in (1e-6, 1e-5, 1e-3):
        found = diagnosed((o + size * noise).astype(np.float32), case, "blk.0.q_rope")
        assert not found.named and not found.identified, size
        assert found.sentence().startswith("nothing known fits: off are "), size
