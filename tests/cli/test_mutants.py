"""`llama-ckpt mutants`, and the pages that its report becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_ckpt.cli import app
from llama_ckpt.diagnose.bugs import catalogue
from llama_ckpt.mutants.models import SHAPES
from llama_ckpt.mutants.report import SCHEMA, run_mutants
from llama_ckpt.mutants.right_programs.catalogue import ROUNDING, VARIANTS
from llama_ckpt.mutants.rival_metrics import RIVALS
from llama_ckpt.mutants.trial import run_bug
from tests.comparing.prompts import bench
from tools.kept_reports import kept_report
from tools.mutant_pages import bugs_page, metrics_page

TOTALS = ("bugs", "killed", "killed_by_named_checkpoint", "named_first")
TOTALS += ("indistinguishable", "benign", "false_alarms", "seeds")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The report that the documentation is made of."""
    return kept_report("mutants")


def test_prints_the_matrix_and_writes_the_totals(tmp_path: Path) -> None:
    out = tmp_path / "mutants.json"
    options = ["--seeds", "1", "--no-embedded", "--json", str(out)]
    done = CliRunner().invoke(app, ["mutants", "rope-half-split", "argmax-smallest", *options])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    row = next(line.split() for line in lines if line.startswith("rope-half-split"))
    assert row[1:4] == ["1B", "1B", "q_rope"] and row[-4:] == ["named", "3", "of", "3"]
    assert "2 of 2 bugs killed by the checkpoint named, 2 by any" in lines
    report = json.loads(out.read_text(encoding="utf-8"))
    assert [report[name] for name in TOTALS] == [2, 2, 2, 2, 0, 0, 0, 1]


def test_an_unknown_bug_is_refused() -> None:
    done = CliRunner().invoke(app, ["mutants", "rope-half-spilt"])
    assert done.exit_code == 2
    assert "got rope-half-spilt, wanted a name from docs/bugs.md" in done.stderr


def test_the_recorded_report_is_of_these_catalogues(recorded: dict[str, Any]) -> None:
    again = "run `llama-ckpt mutants --json docs/mutants.json` and `make docs`"
    fields = ("name", "sentence", "checkpoint", "function")
    rows = [{name: getattr(bug, name) for name in fields} for bug in catalogue()]
    assert [{name: row[name] for name in fields} for row in recorded["catalogue"]] == rows, again
    variants = [(variant.name, variant.sentence, variant.dtype) for variant in VARIANTS]
    assert [(row["name"], row["sentence"], row["dtype"]) for row in recorded["variants"]] == variants, again
    assert [row["name"] for row in recorded["metrics"]] == [
        "llama_ckpt",
        *(rival.name for rival in RIVALS),
    ], again
    assert recorded["schema"] == SCHEMA


def test_the_recorded_report_shows_what_is_promised(recorded: dict[str, Any]) -> None:
    assert recorded["bugs"] >= 50 and recorded["benign"] >= 12 and recorded["seeds"] >= 10
    assert recorded["killed"] == recorded["killed_by_named_checkpoint"] == recorded["bugs"]
    assert recorded["named_first"] >= 0.95 * recorded["bugs"]
    assert recorded["cases"]["named_alone"] >= 0.95 * recorded["cases"]["runs"]
    assert recorded["false_alarms"] == 0
    assert all(row["prompts"] >= 10 for row in recorded["catalogue"])
    assert (recorded["metrics"][0]["missed"], recorded["metrics"][0]["condemned_float32"]) == (0, 0)
    assert all(metric["missed"] > 0 for metric in recorded["metrics"][1:])


def test_the_recorded_misses_are_seen_again(recorded: dict[str, Any]) -> None:
    """A metric that misses a bug on every recorded prompt misses it here; one that never does, never."""
    rows = {row["name"]: row for row in recorded["catalogue"]}
    seen = [run_bug(bug, bench(shape), ROUNDING[0]) for bug in catalogue() for shape in SHAPES]
    checked = 0
    for run in seen:
        if run is None or run.rivals is None:
            continue
        row = rows[run.bug.name]
        for rival in RIVALS:
            missed = row["missed_by"][rival.name]
            if missed in (0, row["prompts"]):
                assert (rival.name not in run.rivals) == (missed > 0), (run.bug.name, rival.name)
                checked += 1
    assert checked > 500


def test_pages_say_what_the_report_says(recorded: dict[str, Any]) -> None:
    bugs, metrics = bugs_page(recorded), metrics_page(recorded)
    for row in recorded["catalogue"]:
        assert f"| `{row['name']}` | {row['sentence'].replace('|', chr(92) + '|')}" in bugs
    for variant in recorded["variants"]:
        assert f"| `{variant['name']}` | {variant['sentence']} | {variant['dtype']} |" in bugs
    for metric in recorded["metrics"]:
        assert f"| {metric['missed']} ({metric['always_missed']}) |" in metrics
    assert all(line.count(" | ") == 4 for line in bugs.splitlines() if line.startswith("| `"))


def test_nothing_tried_is_no_success() -> None:
    assert run_mutants(1, embedded=False, bugs=[], variants=()).exit_code == 1
    assert run_mutants(0, embedded=False, bugs=[]).exit_code == 1
