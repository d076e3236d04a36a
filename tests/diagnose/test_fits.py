"""Bugs with a number of their own: found from the tensor, to as many digits as float32 shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llama_ckpt.diagnose.diagnosis import diagnose_point
from llama_ckpt.diagnose.patched_oracle import RIGHT
from llama_ckpt.diagnose.records import Diagnosis
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.points import Case
from tests.comparing.prompts import bench, rope_case


def with_other(case: Case, **arguments: Any) -> Case:
    """The call as a program with other numbers makes it."""
    return replace(case, arguments={**case.arguments, **arguments})


def diagnosed(case: Case, wrong: Case, point: str) -> Diagnosis:
    x, o = RIGHT.answers(wrong)[point].astype(np.float32), RIGHT.answers(case)[point]
    return diagnose_point(point, x, o, limit=limit_for(point, "float32", "own"), case=case)


def theta(value: float) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda given: {"frequencies": value ** (-np.arange(8) / 8)}


ROPE: list[tuple[str, str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = [
    (
        "rope-offset-fitted",
        "RoPE's positions are off by +3",
        lambda given: {"positions": given["positions"] + 3},
    ),
    (
        "rope-offset-fitted",
        "RoPE's positions are off by -2",
        lambda given: {"positions": given["positions"] - 2},
    ),
    ("rope-theta-fitted", "RoPE's theta is 8,000", theta(8000.0)),
    ("rope-theta-fitted", "RoPE's theta is 2,500,000", theta(2.5e6)),
    (
        "rope-factor-fitted",
        "RoPE's frequencies are multiplied by 0.25",
        lambda given: {"frequencies": given["frequencies"] / 4},
    ),
]


@pytest.mark.parametrize(("name", "sentence", "change"), ROPE, ids=[row[1] for row in ROPE])
@pytest.mark.parametrize("point", ["blk.0.q_rope", "blk.0.k_rope"])
def test_rope(
    name: str, sentence: str, change: Callable[[Mapping[str, Any]], dict[str, Any]], point: str
) -> None:
    case = rope_case(n=12)
    found = diagnosed(case, with_other(case, **change(case.arguments)), point)
    assert found.named[0].name == name
    assert [bug.name for bug in found.named if bug.explained] == [name]
    left = f"{found.named[0].remaining_error:.1e}"
    assert found.named[0].explained
    if "theta" in name:  # as many digits as the rounding of float32 leaves
        shown = float(found.named[0].sentence.split()[-1].replace(",", ""))
        assert shown == pytest.approx(float(sentence.split()[-1].replace(",", "")), rel=1e-4)
    else:
        assert found.sentence() == f"{sentence}: remaining error {left}"


@pytest.mark.parametrize("eps", [3e-7, 3e-6, 1e-4])
def test_epsilon(eps: float) -> None:
    case = bench().cases["1"][0]
    found = diagnosed(case, with_other(case, eps=eps), case.returns[0])
    assert found.named[0].name == "norm-eps-fitted"
    assert found.named[0].sentence == f"the norm's epsilon is {eps:.3g}, not 1e-05"


def test_attention_scale() -> None:
    case = bench().cases["3"][0]
    q = case.arguments["q"]
    wrong = RIGHT.answers(with_other(case, q=q * 0.8))
    point = "blk.0.attn_probs"
    o = RIGHT.answers(case)[point]
    limit = limit_for(point, "float32", "own")
    found = diagnose_point(point, wrong[point].astype(np.float32), o, limit=limit, case=case)
    assert found.named[0].sentence == "the scores are multiplied by 0.2, not by 0.25 = 1/sqrt(head_dim)"


def test_temperature() -> None:
    options = {"logits": bench().given["last_logits"], "temperature": 0.7, "top_k": 20}
    case = Case("softmax", options, ("sampling.0",))
    found = diagnosed(case, with_other(case, temperature=0.9), "sampling.0")
    assert found.named[0].sentence == "the temperature is 0.9, not 0.7"


def test_what_fits_badly_is_not_named() -> None:
    case = rope_case()
    o = RIGHT.answers(case)["blk.0.q_rope"]
    noise = np.random.default_rng(3).standard_normal(o.shape)
    limit = limit_for("q_rope", "float32", "own")
    assert diagnose_point("blk.0.q_rope", o + 0.1 * noise, o, limit=limit, case=case).named == []


def test_the_catalogue_comes_first() -> None:
    case = rope_case(n=12)
    wrong = with_other(case, positions=case.arguments["positions"] + 1)
    assert [bug.name for bug in diagnosed(case, wrong, "blk.0.q_rope").named] == ["rope-position-plus-one"]
