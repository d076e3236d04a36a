"""The catalogues themselves: names, checkpoints, and each patch with its function's own arguments."""

from __future__ import annotations

import inspect
import re
from itertools import chain
from typing import Any

import numpy as np
import pytest

from llama_ckpt.diagnose.bugs import Bug, candidates, catalogue
from llama_ckpt.diagnose.few_tokens import few_tokens
from llama_ckpt.diagnose.patched_oracle import RIGHT, DoesNotApply
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.mutants.models import MIXTURES, SHAPES
from llama_ckpt.mutants.right_programs.catalogue import ROUNDING, VARIANTS
from llama_ckpt.oracle.patched_oracle import RARE
from llama_ckpt.points import POINTS, Case, split_name
from llama_ckpt.precisions import DTYPES
from tests.comparing.prompts import bench

LADDER = [checkpoint.id for checkpoint in discover()]


def test_there_are_enough_of_both() -> None:
    assert len(catalogue()) >= 50 and len(VARIANTS) >= 12


def test_names_and_sentences_are_unique() -> None:
    for records in (catalogue(), VARIANTS):
        assert len({one.name for one in records}) == len(records)
        assert len({one.sentence for one in records}) == len(records)


def test_every_checkpoint_has_its_bugs_in_the_ladders_order() -> None:
    assert {bug.checkpoint for bug in catalogue()} == set(LADDER)
    places = [LADDER.index(bug.checkpoint) for bug in catalogue()]
    assert places == sorted(places)


@pytest.mark.parametrize("bug", catalogue(), ids=lambda bug: bug.name)
def test_a_bug_can_be_called_as_what_it_replaces(bug: Bug) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", bug.name)
    assert not bug.sentence.endswith(".") and 10 < len(bug.sentence) < 110
    # What a Llama-2 has none of is added to what a wrong function makes: it need not know of it.
    wanted = [one for one in inspect.signature(getattr(RIGHT, bug.function)).parameters if one not in RARE]
    given = inspect.signature(bug.patch).parameters
    if all(one.kind is not one.VAR_KEYWORD for one in given.values()):
        assert [one for one in given if one not in RARE][1:] in (
            wanted,
            [*wanted, "tap"],
        ) or bug.function == "linear"
    assert len(given) >= 2


def test_candidates_reach_into_what_a_function_calls() -> None:
    named = {bug.name for bug in candidates("block")}
    assert {"rope-half-split", "product-tf32", "block-parallel"} <= named
    assert not named & {"embed-scaled", "logits-tied", "argmax-smallest"}
    assert {bug.name for bug in candidates("generate")} >= named
    assert [bug.function for bug in candidates("block")][0] == "block"


def test_candidates_leave_out_what_passed() -> None:
    left = candidates("block", ("1", "1B", "2", "3", "6", "6B"))
    assert {bug.checkpoint for bug in left} == {"7"}


def first_three(case: Case, answers: dict[str, Any]) -> list[Evidence] | None:
    """The call and its answers for three tokens of eight; None of a function that has no tokens."""
    limits = {name: limit_for(name, "float32", "own") for name in answers if split_name(name)[1] in POINTS}
    wrong = [Evidence(name, 1 + 2 * answers[name], answers[name], one, case) for name, one in limits.items()]
    return few_tokens(wrong, 2) if wrong else None


@pytest.mark.parametrize("shape", [*SHAPES, *MIXTURES])
def test_of_fewer_tokens_a_bug_makes_the_same_rows(shape: str) -> None:
    """What does not is marked, for whoever tries bugs on a few tokens alone."""
    seen = set()
    for case in chain.from_iterable(bench(shape).cases.values()):
        cut = first_three(case, RIGHT.answers(case))
        for bug in catalogue() if cut else ():
            if bug.function == case.function and not bug.sees_later:
                seen.add(bug.name)
                assert same_rows(bug, case, cut), bug.name
    assert len(seen) > (80 if shape in SHAPES else 10)


def same_rows(bug: Bug, case: Case, cut: list[Evidence]) -> bool:
    with np.errstate(all="ignore"):
        try:
            whole, rows = bug.oracle.answers(case), bug.oracle.answers(cut[0].case)
        except DoesNotApply:
            return True
    for one in cut:
        n = len(rows[one.name])
        wanted = whole[one.name][:n]
        wanted = wanted[..., :n] if one.name.endswith(("attn_scores", "attn_probs")) else wanted
        if not np.allclose(wanted, rows[one.name], rtol=1e-6, atol=1e-9, equal_nan=True):
            return False
    return True


def test_variants_have_a_precision_and_bugs_lie_over_float32_ones() -> None:
    assert {variant.dtype for variant in VARIANTS} == set(DTYPES)
    assert len(ROUNDING) >= 5
    assert all(one.dtype == "float32" and not one.of_q8_0 and one.name.startswith("sum-") for one in ROUNDING)
