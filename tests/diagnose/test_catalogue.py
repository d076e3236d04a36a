"""The catalogues themselves: names, checkpoints, and each patch with its function's own arguments."""

from __future__ import annotations

import inspect
import re

import pytest

from llama_ckpt.diagnose.bugs import Bug, candidates, catalogue
from llama_ckpt.diagnose.patched_oracle import RIGHT
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.mutants.right_programs.catalogue import ROUNDING, VARIANTS
from llama_ckpt.precisions import DTYPES

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
    wanted = list(inspect.signature(getattr(RIGHT, bug.function)).parameters)
    given = inspect.signature(bug.patch).parameters
    if all(one.kind is not one.VAR_KEYWORD for one in given.values()):
        assert list(given)[1:] in (wanted, [*wanted, "tap"]) or bug.function == "linear"
    assert len(given) >= 2


def test_candidates_reach_into_what_a_function_calls() -> None:
    named = {bug.name for bug in candidates("block")}
    assert {"rope-half-split", "product-tf32", "block-parallel"} <= named
    assert not named & {"embed-scaled", "logits-tied", "argmax-smallest"}
    assert {bug.name for bug in candidates("generate")} >= named
    assert [bug.function for bug in candidates("block")][0] == "block"


def test_candidates_leave_out_what_passed() -> None:
    left = candidates("block", ("1", "1B", "2", "3", "6"))
    assert {bug.checkpoint for bug in left} == {"7"}


def test_variants_have_a_precision_and_bugs_lie_over_float32_ones() -> None:
    assert {variant.dtype for variant in VARIANTS} == set(DTYPES)
    assert len(ROUNDING) >= 5
    assert all(one.dtype == "float32" and not one.of_q8_0 and one.name.startswith("sum-") for one in ROUNDING)
