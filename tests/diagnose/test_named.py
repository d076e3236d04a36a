"""Which bug explains a tensor: alone, in a group, through rounding, and where nothing can be measured."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llama_ckpt.diagnose.bugs import Bug, catalogue
from llama_ckpt.diagnose.diagnosis import diagnose_point, diagnose_points, smallest_limit
from llama_ckpt.diagnose.evidence import Predictions
from llama_ckpt.diagnose.patched_oracle import RIGHT, PatchedOracle
from llama_ckpt.diagnose.records import Diagnosis
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.judging.matching import distance, passes
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16
from llama_ckpt.points import Case
from tests.comparing.prompts import rope_case

BUGS = {bug.name: bug for bug in catalogue()}


def norm_case(scale: float = 1.0, width: int = 64, n: int = 8) -> Case:
    generator = np.random.default_rng(width)
    x = scale * generator.standard_normal((n, width))
    weight = 1 + 0.2 * generator.standard_normal(width)
    return Case("rms_norm", {"x": x, "weight": weight, "eps": 1e-5}, ("blk.3.ffn_norm",))


def swiglu_case() -> Case:
    generator = np.random.default_rng(5)
    x, gate, up = (generator.standard_normal(s) for s in ((4, 32), (48, 32), (48, 32)))
    down = generator.standard_normal((32, 48))
    inner = {point: f"blk.0.{point}" for point in ("ffn_gate", "ffn_up", "ffn_swiglu")}
    return Case("swiglu", {"x": x, "w_gate": gate, "w_up": up, "w_down": down}, ("blk.0.ffn_out",), inner)


def diagnosed(
    name: str, case: Case, point: str, *, dtype: str = "float32", rounded: Any = None, **more: Any
) -> Diagnosis:
    x = BUGS[name].oracle.answers(case)[point]
    x = x.astype(np.float32) if rounded is None else rounded(x)
    o = RIGHT.answers(case)[point]
    return diagnose_point(point, x, o, limit=limit_for(point, dtype, "own"), case=case, **more)


def test_half_split_pairs_are_named_with_what_is_left() -> None:
    found = diagnosed("rope-half-split", rope_case(), "blk.0.q_rope")
    assert [bug.name for bug in found.named] == ["rope-half-split"]
    assert found.named[0].explained and 1e-9 < found.named[0].remaining_error < 1e-7 < found.err
    left = f"{found.named[0].remaining_error:.1e}"
    assert found.sentence() == f"RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1): remaining error {left}"


@pytest.mark.parametrize(("dtype", "rounded"), [("float16", to_float16), ("bfloat16", to_bfloat16)])
def test_a_bug_is_seen_through_half_precision(dtype: str, rounded: Any) -> None:
    found = diagnosed("rope-half-split", rope_case(), "blk.0.k_rope", dtype=dtype, rounded=rounded)
    assert [bug.name for bug in found.named] == ["rope-half-split"]
    assert found.named[0].explained


def test_without_a_case_only_the_structure_is_told() -> None:
    case = rope_case()
    o = RIGHT.answers(case)["blk.0.q_rope"]
    found = diagnose_point("blk.0.q_rope", -o, o, limit=limit_for("q_rope", "float32", "own"))
    assert found.named == [] and found.structure[0].kind == "sign"
    assert found.sentence() == "the sign is flipped: remaining error 0.0e+00"


def test_what_fits_nothing_is_not_named() -> None:
    case = rope_case()
    o = RIGHT.answers(case)["blk.0.q_rope"]
    x = np.random.default_rng(9).standard_normal(o.shape)
    found = diagnose_point("blk.0.q_rope", x, o, limit=limit_for("q_rope", "float32", "own"), case=case)
    assert (found.named, found.identified, found.structure) == ([], [], [])
    assert found.sentence().startswith("nothing known fits: off are ")


def test_bugs_that_give_one_tensor_are_said_to_be_alike() -> None:
    case = norm_case(scale=0.02)
    alike = Bug(
        "norm-eps-gone", "the norm's epsilon is lost", "1", "rms_norm", BUGS["norm-eps-missing"].patch
    )
    found = diagnosed("norm-eps-missing", case, "blk.3.ffn_norm", among=[*catalogue(), alike])
    assert found.indistinguishable == [("norm-eps-missing", "norm-eps-gone")]
    assert "(or, alike here: norm-eps-gone)" in found.sentence()


def test_one_token_at_position_0_tells_nothing_of_theta() -> None:
    case = rope_case(n=1, first=0)
    theta = BUGS["rope-theta-500000"].oracle.answers(case)["blk.0.q_rope"]
    assert np.array_equal(theta, RIGHT.answers(case)["blk.0.q_rope"])
    found = diagnosed("rope-position-plus-one", case, "blk.0.q_rope")
    assert found.named[0].name == "rope-position-plus-one"


def test_the_other_tensors_of_a_call_rule_bugs_out() -> None:
    # The gate alone does not tell whether up is wrong too.
    case = swiglu_case()
    only_gate = Bug(
        "ffn-up-twice",
        "gate is up",
        "6",
        "swiglu",
        lambda right, x, w_gate, w_up, w_down, tap=None: right.swiglu(x, w_up, w_up, w_down, tap),
    )
    x, o = BUGS["ffn-gate-up-swapped"].oracle.answers(case), RIGHT.answers(case)
    evidence = [
        Evidence(name, x[name].astype(np.float32), o[name], limit_for(name, "float32", "own"), case)
        for name in ("blk.0.ffn_gate", "blk.0.ffn_up")
    ]
    among = [only_gate, BUGS["ffn-gate-up-swapped"]]
    alone = diagnose_points(evidence[:1], among=among)
    assert alone.indistinguishable == [tuple(bug.name for bug in alone.named)] and len(alone.named) == 2
    assert [bug.name for bug in diagnose_points(evidence, among=among).named] == ["ffn-gate-up-swapped"]


def test_an_overflow_is_held_against_a_bug_that_overflows() -> None:
    found = diagnosed("norm-squares-float16", norm_case(scale=400.0), "blk.3.ffn_norm")
    assert np.isfinite(found.err) and found.named[0].name == "norm-squares-float16"
    nan = Bug("norm-nan", "token 1 is NaN", "1", "rms_norm", one_token_nan)
    case = norm_case()
    limit, x = limit_for("ffn_norm", "float32", "own"), nan.oracle.answers(case)["blk.3.ffn_norm"]
    o = RIGHT.answers(case)["blk.3.ffn_norm"]
    found = diagnose_point("blk.3.ffn_norm", x, o, limit=limit, case=case, among=[*catalogue(), nan])
    assert [bug.name for bug in found.named] == ["norm-nan"]
    assert found.err == np.inf and found.smallest_limit is None and found.to_json()["err"] is None


def one_token_nan(right: PatchedOracle, x: Any, weight: Any, *, eps: float, tap: Any = None) -> Any:
    result = right.rms_norm(x, weight, eps=eps)
    result[1] = np.nan
    return result


def test_tokens_of_another_length_are_held_against_bugs_too() -> None:
    case = Case("generate", {}, ("continuation",))
    limit = replace(limit_for("token_ids", "float32", "own"), point="continuation")
    short = Bug("generate-short", "it stops early", "12", "generate", lambda right: np.array([1, 2]))
    found = diagnose_point("continuation", [1, 2], [1, 2, 3], limit=limit, case=case, among=[short])
    assert [bug.name for bug in found.named] == ["generate-short"] and found.named[0].explained


def test_a_bug_that_does_not_apply_is_left_out() -> None:
    attention = rope_case()
    q = attention.arguments["q"]
    arguments = {"q": q, "k": q, "v": q, "wo": np.eye(64), "positions": np.arange(8)}
    case = Case("attention", arguments, ("blk.0.attn_out",))
    assert Predictions().of(BUGS["attention-group-modulo"], case) is None
    assert Predictions().of(BUGS["attention-scale-missing"], case) is not None


def test_predictions_are_made_once() -> None:
    made, case = Predictions(), rope_case()
    first = made.of(BUGS["rope-half-split"], case)
    assert made.of(BUGS["rope-half-split"], case) is first


def test_smallest_limit_is_what_would_pass() -> None:
    case = norm_case()
    limit, o = limit_for("ffn_norm", "float32", "own"), RIGHT.answers(case)["blk.3.ffn_norm"]
    x = o * 1.001
    x[2, 5] += 0.1
    least = smallest_limit(x, o, limit)
    assert least is not None and least.metric == "element_err" and least.factor > 1e3
    fields = ("err", "row_err", "element_err", "gain", "bias")
    just = replace(limit, **{name: getattr(least, name) * (1 + 1e-9) for name in fields})
    assert passes(x, o, just)
    for name in fields:
        assert not passes(x, o, replace(just, **{name: getattr(least, name) * (1 - 1e-6)}))


def test_distance_ignores_what_is_masked_and_spares_what_is_furthest() -> None:
    o = np.ones((2, 10))
    x = o.copy()
    x[0, 0] = 3
    assert distance(x, o) == pytest.approx(2 / 20**0.5)
    assert distance(x, o, np.arange(10) > 0) == 0
    assert distance(x, o, spared=0.1) == 0
    assert distance(x[:1], o) == np.inf
    assert distance(np.array([1, 2]), np.array([1, 3])) == 0.5


def test_json_is_plain() -> None:
    found = diagnosed("rope-half-split", rope_case(), "blk.0.q_rope").to_json()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["named"][0]["name"] == "rope-half-split" and again["sentence"].startswith("RoPE turns pairs")
    assert again["smallest_limit"]["metric"] in again["smallest_limit"]


def test_a_diagnosis_needs_no_torch() -> None:
    code = "import sys, llama_ckpt.diagnose.diagnosis, llama_ckpt.diagnose.bugs as bugs; bugs.catalogue(); "
    code += "print(*[name for name in ('torch', 'checkpoints') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
