"""Bugs planted in programs that round on purpose: caught where they are made, and named; a sample of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_ckpt.arithmetic.profiles import arithmetic_of
from llama_ckpt.cli import app
from llama_ckpt.mutants.declared.report import PROMPTS, WANTED, PlantedProgram, PlantedRow, planted_bugs
from llama_ckpt.mutants.declared.trial import DeclaredBench, run_declared, run_right
from llama_ckpt.mutants.real.models import Models
from llama_ckpt.report.planted import planted_page
from tools.kept_reports import kept_report

ARITHMETICS: dict[str, Any] = {
    "w8a8": "w8a8-per-token",
    "tf32": "tf32",
    "half cache": {"name": "float16-cache", "keys": "float16", "values": "float16"},
}
SAMPLE = ("norm-eps-other", "rope-half-split", "attention-scale-missing", "ffn-gate-up-swapped")


def bench(arithmetic: str, folder: Path) -> DeclaredBench:
    name, prompt = PROMPTS[0]
    return DeclaredBench(arithmetic_of(ARITHMETICS[arithmetic]), Models(folder).path(name), prompt, folder)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_sample_is_caught_where_it_is_made_and_named(arithmetic: str, tmp_path: Path) -> None:
    on, program = bench(arithmetic, tmp_path), PlantedProgram(arithmetic_of(ARITHMETICS[arithmetic]))
    known = {bug.name: bug for bug in planted_bugs()}
    for seed, name in enumerate(SAMPLE):
        run = run_declared(known[name], on, seed)
        assert run is not None and run.at_the_right_point, (name, run)
        program.rows.append(PlantedRow(known[name], run))
        assert program.rows[-1].named, run
    program.right.append(run_right(on, 1))
    assert program.kept, program.right[0].said
    assert program.figures()["caught"] == len(SAMPLE)


@pytest.mark.parametrize("profile", ["bfloat16-torch", "float16-torch", "bfloat16-torch-sdpa", "run.c"])
def test_a_right_program_that_rounds_inside_rope_passes(profile: str, tmp_path: Path) -> None:
    name, prompt = PROMPTS[0]
    on = DeclaredBench(arithmetic_of(profile), Models(tmp_path).path(name), prompt, tmp_path)
    run = run_right(on, 1)
    assert not run.caught, run.said


def test_a_rounding_of_the_programs_own_is_no_bug_there(tmp_path: Path) -> None:
    (bug,) = (one for one in planted_bugs() if one.name == "product-tf32")
    assert bench("tf32", tmp_path).shown(bug) is None
    assert bench("half cache", tmp_path).shown(bug) is not None


def test_what_the_page_says_is_kept() -> None:
    found = kept_report("arithmetic_bugs")
    assert len(found["programs"]) == 3
    for one in found["programs"]:
        counts = one["figures"]
        assert counts["bugs"] == len(one["bugs"]) > 0.85 * len(planted_bugs())
        assert counts["right"] >= 16 and not counts["alarms"]
        for what, share in WANTED.items():
            assert counts[what] >= share * counts["bugs"], (one["arithmetic"]["name"], what)
    assert planted_page(found).count("\n| `") >= 3


def test_a_bug_that_no_whole_run_has_is_refused() -> None:
    found = CliRunner().invoke(app, ["mutants", "nothing-such", "--arithmetic", "tf32"])
    assert found.exit_code == 2 and "a bug of a whole run" in found.output
