"""Faults of caches, sequences and tiles: each is killed in a situation, and said what it is."""

from __future__ import annotations

import pytest

from llama_ckpt.mutants.ranks.trial import rank_bugs
from llama_ckpt.mutants.runs.layers import LAYER_BUGS
from llama_ckpt.mutants.runs.report import RunRow, RunsReport, run_layer
from tests.draws import draws

BUGS = {bug.name: bug for bug in LAYER_BUGS}


def test_there_are_many_and_no_name_is_given_twice() -> None:
    names = [*BUGS, *(bug.name for bug in rank_bugs())]
    assert len(set(names)) == len(names) >= 30 and len(BUGS) == len(LAYER_BUGS)


@pytest.mark.parametrize("name", list(BUGS)[:: draws(3, 1)])
def test_a_layer_wrong_beyond_one_call_is_killed_and_named(name: str) -> None:
    row = run_layer(BUGS[name])
    assert row.killed and row.named, row.said


def test_what_survives_is_not_named_or_condemned_fails_the_run() -> None:
    fine = RunRow("a", "", "q", True, True, True, "said")
    right = RunRow("b", "", "", False, False, False, "", right=True)
    assert RunsReport([fine, right]).exit_code == 0 and RunsReport([]).exit_code == 1
    for wrong in (
        RunRow("c", "", "", False, False, False, ""),
        RunRow("c", "", "q", True, True, False, "x"),
        RunRow("c", "", "q", True, False, False, "x", right=True),
    ):
        report = RunsReport([fine, right, wrong])
        assert report.exit_code == 1
        assert [style for _, style in report.lines()] == ["", "", "bold red", "bold"]
    totals = RunsReport([fine, right]).to_json()
    assert (totals["bugs"], totals["killed"], totals["named"], totals["right"]) == (1, 1, 1, 1)
