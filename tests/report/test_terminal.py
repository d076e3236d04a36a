"""A validation as lines of text."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.ladder.report import CheckpointResult, JudgedPoint, LadderReport
from llama_ckpt.report import terminal
from llama_ckpt.report.checkpoint_sources import CheckpointSource, checkpoint_sources
from llama_ckpt.report.repeat import repeat_command, started_as

PASSING = PointVerdict(
    "blk.0.attn_norm", "own", "pass", "", "", err=1e-8, err_reference=2e-8, distance=3e-8, limit=4e-7,
    n_judged=128, closer="yours",
)  # fmt: skip
CLOSEST = PointVerdict(
    "output_norm", "total", "pass", "", "", err=9e-7, err_reference=8e-7, distance=1e-6, limit=1e-5,
    n_judged=128, closer="reference",
)  # fmt: skip
FAILING = PointVerdict(
    "blk.3.ffn_norm", "own", "fail", "yours", "err 4e-3 is above 4e-7", err=4e-3, err_reference=5e-8,
    distance=4e-3, limit=4e-7, max_abs=0.0125, max_abs_limit=1e-5, index=(1, 17), got=1.5125, wanted=1.5,
    n_differ=120, n_judged=128, closer="reference",
)  # fmt: skip
MISSING = PointVerdict("blk.4.ffn_norm", "own", "fail", "yours", "missing: the tensor was never given")


def result(*points: PointVerdict, reason: str = "") -> CheckpointResult:
    failed = any(point.verdict == "fail" for point in points)
    verdict = "fail" if failed else "pass" if points else "skipped"
    judged = [JudgedPoint("f32/hello", point) for point in points]
    compared = sum(point.n_judged > 0 for point in points)
    return CheckpointResult("1", "RMS norm", verdict, reason, compared, len(points), 0.5, judged)


def failure(*points: PointVerdict, reason: str = "") -> dict[str, str]:
    lines = terminal.failure_lines(
        result(*points, reason=reason), device="cpu", dtype="float32", repeat="again"
    )
    return {line[4:16].strip(): line[16:] for line in lines}


def test_row_shows_the_point_that_comes_closest_to_its_limit() -> None:
    row = terminal.checkpoint_row(result(PASSING, CLOSEST))
    assert row.split() == "1 RMS norm pass 2 of 2 9.0e-07 8.0e-07 1.0e-05".split()


def test_row_shows_the_first_failing_point_before_all_others() -> None:
    row = terminal.checkpoint_row(result(CLOSEST, FAILING, MISSING))
    assert row.split() == "1 RMS norm FAIL 2 of 3 4.0e-03 5.0e-08 4.0e-07".split()
    row = terminal.checkpoint_row(result(CLOSEST, MISSING, FAILING))
    assert row.split() == "1 RMS norm FAIL 2 of 3 - - -".split()


def test_row_of_what_is_exact_and_of_what_was_skipped() -> None:
    exact = PointVerdict("embd", "own", "pass", "", "", err=0.0, limit=0.0, n_judged=4, closer="equal")
    assert terminal.checkpoint_row(result(exact)).split()[-3:] == ["0", "-", "equal"]
    skipped = terminal.checkpoint_row(result(reason="skipped: checkpoint 1 failed"))
    assert skipped == "1   RMS norm         skipped 0 of 0       checkpoint 1 failed"
    hidden = terminal.checkpoint_row(result(reason="in registers of fused kernels: " + "attn_norm, " * 9))
    assert len(hidden) <= 80 and hidden.endswith("…")


def test_columns_stand_below_their_headings() -> None:
    *words, heads = terminal.header()
    assert "error = |x - o| / |o|" in words[0] and all(len(line) <= 80 for line in (*words, heads))
    row = terminal.checkpoint_row(result(PASSING))
    for heading, cell in (("checkpoint", "RMS norm"), ("verdict", "pass"), ("compared", "1 of 1")):
        assert heads.index(heading) == row.index(cell)
    for heading, cell in (
        ("your error", "1.0e-08"),
        ("reference's error", "2.0e-08"),
        ("allowed", "4.0e-07"),
    ):
        assert heads.index(heading) + len(heading) == row.index(cell) + len(cell)


def test_failure_says_everything() -> None:
    assert failure(PASSING, FAILING) == {
        "first wrong": "blk.3.ffn_norm: its own error, in recording f32/hello",
        "error": "4.0e-03, 1e+04 times the allowed 4.0e-07",
        "reason": "err 4e-3 is above 4e-7",
        "index": "[1, 17]",
        "got": "1.5125",
        "wanted": "1.5",
        "difference": "0.0125, allowed 1e-05",
        "differing": "120 of 128 elements beyond what is allowed",
        "who is off": "yours",
        "computed": "in float32 on cpu",
        "recording": "f32/hello",
        "repeat": "again",
        "next": "llama-ckpt explain 1",
    }


def test_failure_of_a_missing_point_shows_no_numbers() -> None:
    shown = failure(MISSING, FAILING, reason="blk.4.ffn_norm: missing; it stands on 0, which failed")
    assert shown["error"] == "missing: the tensor was never given"
    assert shown["also fail"] == "blk.3.ffn_norm (f32/hello)"
    assert shown["stands on"] == "0, which failed"
    assert not {"got", "index", "difference", "differing", "reason"} & set(shown)


def test_many_further_failures_are_counted_once() -> None:
    many = [replace(FAILING, name=f"blk.{number}.ffn_norm") for number in range(20)]
    assert failure(*many, *many)["also fail"].endswith(" and 14 more")


def test_a_fault_that_only_shows_in_total_is_inherited() -> None:
    inherited = replace(FAILING, error_kind="total")
    assert "layers before this one" in failure(PASSING, inherited)["inherited"]
    assert "inherited" not in failure(FAILING, inherited)


def test_failure_without_points_gives_its_reason() -> None:
    bare = CheckpointResult("1", "RMS norm", "fail", "nothing was compared")
    assert list(terminal.failure_lines(bare, device="cpu", dtype="float32", repeat="")) == [
        "    nothing was compared"
    ]


@pytest.mark.parametrize("model", [None, "a model.gguf"])
def test_the_command_that_repeats_can_be_pasted(model: str | None) -> None:
    command = repeat_command(["1B"], model=model, dumps=None, device="cpu", dtype="float16", oracle_only=True)
    given = ["--model", "a model.gguf"] if model else []
    wanted = [
        "llama-ckpt",
        "validate",
        "1B",
        *given,
        "--device",
        "cpu",
        "--dtype",
        "float16",
        "--oracle-only",
    ]
    assert shlex.split(command) == wanted


def test_a_script_that_runs_the_command_is_repeated_as_itself() -> None:
    assert started_as(["python", "mine.py", "1", "2"]) == ("python", "mine.py")
    assert started_as(["v/python", "-X", "dev", "-O", "m.py", "1"]) == ("v/python", "-X", "dev", "-O", "m.py")
    assert started_as(["python", "-m", "mine.wrong", "1"]) == ("python", "-m", "mine.wrong")
    assert started_as(["python", "mine.py", "validate", "1"]) == ("python", "mine.py", "validate")
    for others in (
        ["python", "bin/llama-ckpt", "validate"],
        ["python", "-m", "llama_ckpt"],
        ["python"],
        ["p", "-c", "1"],
    ):
        assert started_as(others) == ("llama-ckpt", "validate")


def test_what_a_failure_stands_on_is_repeated_with_it() -> None:
    command = repeat_command(
        ["1", "2"], model=None, dumps=None, device="cpu", dtype="float32", oracle_only=False
    )
    assert command == "llama-ckpt validate 1 2 --device cpu --dtype float32"


def test_a_failure_takes_six_lines_at_first() -> None:
    given = {"device": "cpu", "dtype": "float32", "repeat": "again"}
    brief = list(terminal.failure_lines(result(FAILING), **given, verbose=False))
    assert [line[4:16].strip() for line in brief] == ["first wrong", "error", "who is off", "repeat", "next"]
    assert brief[-1].endswith("llama-ckpt explain 1, or repeat with -v")
    assert len(list(terminal.failure_lines(result(FAILING), **given))) > 6


def test_a_run_that_compared_nothing_is_no_success() -> None:
    hidden = CheckpointResult("1", "RMS norm", "hidden", "in registers", hidden=("attn_norm",))
    report = LadderReport("m.gguf", "cuda", "float32", [], True, [hidden], engine="fast")
    assert report.exit_code == 1
    assert list(terminal.summary_lines(report))[1].startswith("nothing was compared")
    report.checkpoints.append(result(PASSING))
    report.checkpoints[-1].compared = 1
    report.checkpoints[-1].verdict = "pass"
    assert report.exit_code == 0
    assert list(terminal.summary_lines(report))[0].startswith("1 of 1 checkpoints pass")


def test_summary_counts_and_ends_with_the_notes() -> None:
    report = LadderReport("m.gguf", "cpu", "float32", ["llama.cpp: not compared"], False, [], seconds=1.0)
    off = replace(PASSING, blame="reference")
    report.checkpoints += [result(PASSING, off, off), result(FAILING)]
    assert list(terminal.summary_lines(report)) == [
        "1 of 2 checkpoints pass: m.gguf, float32 on cpu, 1.0 s",
        "the reference itself is off, beyond what float32 allows, at points: 2 of f32/hello",
        "llama.cpp: not compared",
    ]


def test_a_strip_shows_the_blocks() -> None:
    points = [replace(FAILING, name=f"blk.{n}.ffn_norm", err=4e-7 * 10.0 ** (n - 5)) for n in range(8)]
    free = [replace(point, error_kind="total", verdict="pass") for point in points[:6]]
    lines = failure(*points, *free)
    assert lines["own error"] == "·····▁▃▄  ffn_norm, by block"
    assert lines["total error"] == "·····▁  ffn_norm, by block"
    assert "own error" not in failure(PASSING, FAILING)


@pytest.mark.parametrize("checkpoint", checkpoint_sources(), ids=lambda one: one.id)
def test_every_checkpoints_row_fits_its_columns(checkpoint: CheckpointSource) -> None:
    *_, heads = terminal.header()
    row = terminal.checkpoint_row(replace(result(PASSING), id=checkpoint.id, title=checkpoint.title))
    assert row.index("pass ") == heads.index("verdict") and len(row) <= 80
