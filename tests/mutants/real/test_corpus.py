"""The corpus of reported faults on a small draw: caught, where, how names are graded, nothing right."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from llama_ckpt.making.derive import direct_type
from llama_ckpt.mutants.real.catalogue import FAMILIES, real_bugs, right_ports
from llama_ckpt.mutants.real.models import SEEDED, Models
from llama_ckpt.mutants.real.port import Port
from llama_ckpt.mutants.real.record import Prompt, RealBug, RightPort
from llama_ckpt.mutants.real.report import RealReport, RealRow, RightRow, run_real
from llama_ckpt.mutants.real.trial import Bench, RealRun, at_the_right_point, graded, run_bug, run_right
from llama_ckpt.mutants.rival_metrics import RIVALS
from llama_ckpt.points import split_name
from llama_ckpt.report.real_bugs import lines
from tests.draws import draws
from tools.kept_reports import kept_report

QUICK = {"grouped", "linear", "llama3", "tied", "massive", "q8_0", "q4_0"}
BUGS = {bug.name: bug for bug in real_bugs()}
DRAW = sorted(BUGS)[:: draws(6, 1)]
RIGHT = {one.name: one for one in right_ports()}


@cache
def bench() -> Bench:
    return Bench(Models(Path(mkdtemp(prefix="real_bugs"))))


def model_of(one: RealBug | RightPort) -> str:
    return next((name for name in one.models if name in QUICK), one.models[0])


def needs_llama_cpp(model: str) -> bool:
    """Mixes of K-quants are quantized by llama.cpp itself."""
    return model in SEEDED and direct_type(SEEDED[model][0]) is None


def drawn(name: str) -> object:
    marks = [pytest.mark.llama_cpp] if needs_llama_cpp(model_of(BUGS[name])) else []
    return pytest.param(name, marks=marks)


def test_the_corpus_is_large_and_each_entry_has_its_report() -> None:
    assert sum(not (bug.needs_run or bug.late) for bug in real_bugs()) >= 60
    assert sum(bug.late for bug in real_bugs()) >= 15
    assert len(BUGS) == len(real_bugs())
    for bug in real_bugs():
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#[1-9]\d*", one) for one in bug.reports), bug.name
        assert bug.fault[-1] != "." and set(bug.models) <= {"embedded", "massive", *SEEDED}
        assert bug.at and bug.needs_run in ("", "several calls", "ranks")
        re.compile(bug.right), re.compile(bug.wrong)
    for one in (point for bug in real_bugs() for point in bug.at):
        split_name(one)
    assert all(family.right for family in FAMILIES if not family.late)


@pytest.mark.parametrize("name", [drawn(name) for name in DRAW])
def test_a_reported_fault_is_caught(name: str) -> None:
    bug = BUGS[name]
    run = run_bug(bug, bench(), model_of(bug), bug.prompts[0])
    assert run.caught
    assert at_the_right_point(bug, run) or bug.needs_run, (run.at, run.made)


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_right_is_condemned(name: str) -> None:
    right = RIGHT[name]
    run = run_right(right, bench(), model_of(right), right.prompts[0])
    assert not run.caught, (run.at, run.said)


def test_calls_and_padding_change_no_row() -> None:
    """What the port records of a prompt is the same in chunks, in steps and behind padding."""
    whole = bench().dump(Port, "grouped", Prompt(9))
    for other in (Prompt(9, calls=(4, 3, 1, 1)), Prompt(9, n_pad=3), Prompt(9, calls=(5, 4), n_pad=2)):
        dump = bench().dump(Port, "grouped", other)
        for name, x in whole.items():
            if not name.endswith("attn_scores"):  # of keys that are seen later, scores were not made
                assert np.allclose(dump[name], x, rtol=1e-4, atol=1e-4), name


def test_grading() -> None:
    bug = replace(BUGS["theta-ten-thousand"], right="theta is 10,000", wrong="scaling")
    assert graded(bug, "RoPE's theta is 10,000: remaining error 1e-8") == "rightly"
    assert graded(bug, "a part of it: RoPE's theta is 10,000; explains 40% of the error") == "half"
    assert graded(bug, "RoPE's theta is 10,000 (or, alike here: linear scaling)") == "half"
    assert graded(bug, "the file's linear scaling is ignored") == "wrongly"
    assert graded(bug, "each feature has a gain of its own: remaining error 1e-8") == "wrongly"
    assert graded(bug, "a part of it: each feature has a gain of its own") == "not named"
    assert graded(bug, "only features 3 to 5 are off") == "not named"
    assert graded(bug, "") == "not named"


def run(naming: str, at: str = "blk.0.q_rope", caught: bool = True) -> RealRun:
    rivals = frozenset(rival.name for rival in RIVALS[:2])
    return RealRun("m/9", caught, at, "here", f"said {naming}", naming, rivals)  # type: ignore[arg-type]


def test_figures_count_entries_by_their_worst_run() -> None:
    bug = BUGS["theta-ten-thousand"]
    late = replace(bug, late=True)
    rows = [
        RealRow(bug, [run("rightly"), run("rightly")]),
        RealRow(bug, [run("rightly"), run("wrongly")]),
        RealRow(bug, [run("half", at="blk.0.q")]),
        RealRow(late, [run("not named", caught=False)]),
        RealRow(replace(bug, needs_run="ranks"), [run("rightly")]),
    ]
    report = RealReport(rows)
    assert report.figures("early") == {
        "entries": 3,
        "caught": 3,
        "right_point": 2,
        "rightly": 1,
        "half": 1,
        "not_named": 0,
        "wrongly": 1,
    }
    assert report.figures("late")["caught"] == 0 and report.figures("apart")["entries"] == 1
    assert report.exit_code == 1
    assert RealReport(rows[:1]).exit_code == 0
    right = RightRow(RIGHT["plain"], [run("rightly")])
    assert RealReport(rows[:1], [right]).exit_code == 1
    assert rows[0].missed_by == tuple(rival.name for rival in RIVALS[2:])
    text = [line for line, _ in lines(RealReport(rows, [right]))]
    assert any("said wrongly" in line for line in text) and any("1 condemned" in line for line in text)


def test_a_few_are_run_and_reported(tmp_path: Path) -> None:
    told: list[str] = []
    chosen = [replace(BUGS["linear-scaling-ignored"], prompts=(Prompt(9),))]
    control = [replace(RIGHT["plain"], models=("linear",), prompts=(Prompt(9),))]
    report = run_real(tmp_path, bugs=chosen, right=control, progress=lambda what, i, n: told.append(what))
    assert told == ["linear-scaling-ignored", "plain"]
    record = report.to_json()
    assert record["figures"]["early"]["rightly"] == 1 and record["condemned"] == 0
    assert record["bugs"][0]["points"] == ["blk.0.q_rope"]
    assert at_the_right_point(report.bugs[0].bug, report.bugs[0].runs[0])
    assert report.exit_code == 0


def test_the_page_is_of_todays_corpus() -> None:
    """After a new entry: `llama-ckpt mutants --real --json docs/real_bugs.json`, then `make docs`."""
    docs = Path(__file__).parents[3] / "docs"
    record = kept_report("real_bugs")
    assert [row["name"] for row in record["bugs"]] == [bug.name for bug in real_bugs()]
    assert [row["name"] for row in record["right"]] == [one.name for one in right_ports()]
    assert record["condemned"] == 0
    assert (docs / "real_bugs.md").stat().st_size < 25_000
