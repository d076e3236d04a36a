"""Both catalogues (ten seeds in CI): every bug killed where it should be and named, nothing right alarmed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llama_ckpt.diagnose.bugs import Bug, catalogue
from llama_ckpt.diagnose.patched_oracle import PatchedOracle
from llama_ckpt.ladder.discovery import discover, ladder_of
from llama_ckpt.mutants.models import SHAPES, embedded_given, shapes_for
from llama_ckpt.mutants.report import MutantReport, VariantRow, run_mutants, runs_of
from llama_ckpt.mutants.right_programs.catalogue import ROUNDING, VARIANTS, Variant
from llama_ckpt.mutants.trial import Bench, BugRun, run_bug, run_variant
from llama_ckpt.precisions import DTYPES
from tests.comparing.prompts import bench
from tests.draws import draws

SEEDS = range(draws(4, 10))
ALONE = 0.95
"""At least this share is named first and alone."""


MIXED = {one.id for one in discover() if one.experts}


def shapes_of(bug: Bug) -> list[str]:
    """The shapes that can have the bug: a mixture of experts, or the dense ones."""
    return sorted(shapes_for(bug.checkpoint in MIXED))


def test_ten_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {seed % len(SHAPES) for seed in SEEDS} == set(range(len(SHAPES)))
    monkeypatch.setenv("LLAMA_CKPT_DRAWS", "all")
    assert draws(4, 10) == 10


@pytest.mark.parametrize("seed", SEEDS)
def test_every_bug_is_killed_by_its_checkpoint_and_named(seed: int) -> None:
    rounding = ROUNDING[seed % len(ROUNDING)]
    found = [run_bug(bug, bench(shape, seed), rounding) for bug in catalogue() for shape in shapes_of(bug)]
    runs = [run for run in found if run is not None]
    assert {run.bug.name for run in runs} == {bug.name for bug in catalogue()}  # so each has ten seeds
    wrong = [(run.bug.name, run.label, run.killed_by) for run in runs if not run.by_named_checkpoint]
    assert not wrong
    others = [
        (run.bug.name, run.label, run.group) for run in runs if not (run.named_first or run.indistinguishable)
    ]
    assert not others
    assert sum(run.named_first for run in runs) >= ALONE * len(runs)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_benign_variant_is_condemned(seed: int) -> None:
    given = bench(sorted(SHAPES)[seed % 2], seed).given
    benches = {dtype: Bench(given.rounded_to(dtype), discover()) for dtype in DTYPES}
    for variant in VARIANTS:
        run = run_variant(variant, benches[variant.dtype])
        assert run.judged > 50
        assert not run.alarms


def test_llama_cpps_own_dump_shows_the_same() -> None:
    given = next(one for one in embedded_given() if len(one.token_ids) == 8)
    own = [bug for bug in catalogue() if bug.checkpoint in ("1", "1B", "2", "3", "6", "7")]
    some = [
        variant for variant in VARIANTS if variant.name in ("sum-blas", "attention-split", "torch-float16")
    ]
    runs = list(runs_of(given, bugs=own, variants=some))
    bugs = [run for run in runs if isinstance(run, BugRun)]
    assert len(bugs) > 0.9 * len(own)
    assert all(run.by_named_checkpoint and run.named_first for run in bugs)
    assert not [run.alarms for run in runs if not isinstance(run, BugRun) and run.alarms]


def faint_gain(right: PatchedOracle, x: Any, weight: Any, *, eps: float, tap: Any = None) -> Any:
    return right.rms_norm(x, weight, eps=eps) * (1 + 1e-9)


FAINT = Bug("norm-faint-gain", "a gain within rounding", "1", "rms_norm", faint_gain)


def report_of(bug: Bug) -> MutantReport:
    return run_mutants(1, embedded=False, bugs=[bug], variants=())


def test_a_bug_that_survives_is_reported() -> None:
    report = report_of(FAINT)
    totals = report.totals()
    assert (totals["bugs"], totals["killed"], totals["named_first"]) == (1, 0, 0)
    assert report.exit_code == 1
    assert report.bugs[0].to_json()["killed_by"] == {"": len(SHAPES)}


def test_a_bug_that_another_checkpoint_kills_is_reported() -> None:
    norm = next(bug for bug in catalogue() if bug.name == "norm-weight-missing")
    totals = report_of(replace(norm, checkpoint="7")).totals()
    assert (totals["killed"], totals["killed_by_named_checkpoint"]) == (1, 0)


def test_a_bug_outside_the_catalogue_is_named_by_nobody() -> None:
    offset = Bug(
        "norm-offset",
        "0.01 is added",
        "1",
        "rms_norm",
        lambda right, x, weight, *, eps, tap=None: right.rms_norm(x, weight, eps=eps) + 0.01,
    )
    run = run_bug(offset, bench(), ROUNDING[0])
    assert run is not None and run.by_named_checkpoint
    assert run.group == () and not run.named_first
    assert run.diagnosis is not None and run.diagnosis.structure[0].kind == "bias"


def faint_slope(right: PatchedOracle, *args: Any, **options: Any) -> Any:
    return right.swiglu(*args, **options) * (1 + 1e-4)


def test_a_wrong_variant_raises_a_false_alarm() -> None:
    slope = PatchedOracle({"swiglu": faint_slope})
    wrong = Variant("wrong", "a gain of 1.0001", "float32", lambda: slope)
    run = run_variant(wrong, bench())
    assert {alarm.checkpoint for alarm in run.alarms} >= {"6", "7", "8"}
    assert run.alarms[0].point == "blk.0.ffn_out" and "gain" in run.alarms[0].saw
    report = MutantReport(1, [], [], [VariantRow(wrong, [run])])
    assert report.totals()["false_alarms"] == len(run.alarms) and report.exit_code == 1


def test_the_report_counts_bugs_and_keeps_the_matrix() -> None:
    names = ("rope-half-split", "rope-theta-10000", "tokens-bos-missing")
    bugs = [bug for bug in catalogue() if bug.name in names]
    report = run_mutants(1, embedded=False, bugs=bugs, variants=VARIANTS[:3])
    assert report.exit_code == 0
    json = report.to_json()
    wanted = {
        "bugs": 3,
        "killed": 3,
        "killed_by_named_checkpoint": 3,
        "named_first": 3,
        "indistinguishable": 0,
    }
    assert wanted.items() <= json.items()
    assert (json["benign"], json["false_alarms"], json["seeds"]) == (3, 0, 1)
    assert json["prompts"] == [f"{shape}/0" for shape in sorted(SHAPES)]
    tokens, half_split, theta = json["catalogue"]
    assert tokens["missed_by"]["cosine ≥ 0.99"] is None and tokens["killed_by"] == {"0": len(SHAPES)}
    assert half_split["points"] == {"q_rope": len(SHAPES)}
    assert half_split["missed_by"]["means, 1e-3"] in range(len(SHAPES) + 1)
    assert theta["prompts"] == len(SHAPES) - 1  # one model's theta is 10,000


def test_every_point_of_the_ladder_is_judged() -> None:
    shown = {
        judged.evidence.name
        for case in bench().cases["8"]
        for judged in bench().judged(ROUNDING[0].program, case)
    }
    assert {"blk.0.out", "blk.10.out", "output_norm", "logits"} <= shown
    points = {p for checkpoint in ladder_of(0) for p in checkpoint.points} - {"text"}
    names = [
        name
        for cases in bench().cases.values()
        for case in cases
        for name in (*case.returns, *case.taps.values())
    ]
    assert points <= {name.split(".")[2] if name.startswith("blk.") else name.split(".")[0] for name in names}


def test_mutants_round_as_programs_do() -> None:
    case = bench().cases["2"][0]
    exact = bench().exact(case)
    errors = {float(np.abs(v.program.answers(case)["blk.0.q"] - exact["blk.0.q"]).max()) for v in ROUNDING}
    assert min(errors) > 0 and len(errors) > 4
