"""`llama-ckpt validate`: rows, details of a failure, the report as JSON, exit codes."""

from __future__ import annotations

import json
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from llama_ckpt.cli import app
from llama_ckpt.ladder.discovery import ladder_of
from llama_ckpt.ladder.situations import QUICK
from reference_dumps import dump_folder

ROOT = Path(__file__).parents[2]
POINT_FIELDS = "name error_kind verdict blame reason err err_reference distance max_abs index limit".split()


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["validate", *map(str, words)])


@pytest.fixture
def wrong_epsilon() -> Iterator[None]:
    """Every layer computes RMSNorm with another epsilon, as the example does it."""
    example = runpy.run_path(str(ROOT / "examples" / "wrong_epsilon.py"))
    modules = [m for name, m in sys.modules.items() if name.partition(".")[0] == "checkpoints"]
    right = {module: module.rms_norm for module in modules if hasattr(module, "rms_norm")}
    example["break_rms_norm"]()
    yield
    for module, function in right.items():
        module.rms_norm = function  # type: ignore[attr-defined]


def test_a_pass_says_what_was_compared(tmp_path: Path) -> None:
    report_file = tmp_path / "report.json"
    done = run("1", "--dumps", dump_folder("f32"), "--device", "cpu", "--json", report_file)
    assert done.exit_code == 0, done.output
    assert "1 of 1 checkpoints pass: embedded tiny-32l, float32 on cpu" in done.stdout
    report = json.loads(report_file.read_text())
    assert report["schema"] == 2 and (report["device"], report["dtype"]) == ("cpu", "float32")
    (checkpoint,) = report["checkpoints"]
    assert (checkpoint["id"], checkpoint["verdict"]) == ("1", "pass")
    assert 0 < checkpoint["compared"] == checkpoint["of"] == len(checkpoint["points"])
    for point in checkpoint["points"]:
        assert set(POINT_FIELDS) <= set(point)
        assert point["err"] <= point["limit"]


def test_a_report_is_the_same_from_run_to_run_and_nearly_so_for_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for its seconds; with other threads an error moves by less than a twentieth of its limit."""
    before, reports = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2):
            monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
            torch.set_num_threads(threads)
            done = run(
                "1", "3", "8", "--dumps", dump_folder("f32"), "--device", "cpu", "--json", tmp_path / "r"
            )
            assert done.exit_code == 0, done.output
            reports.append(json.loads((tmp_path / "r").read_text(), object_hook=_without_seconds))
    finally:
        torch.set_num_threads(before)
    one, again, two = reports
    assert one == again and one["checkpoints"]
    for mine, theirs in zip(one["checkpoints"], two["checkpoints"], strict=True):
        for x, y in zip(mine["points"], theirs["points"], strict=True):
            assert [x[key] for key in ("name", "verdict", "blame")] == [
                y[key] for key in ("name", "verdict", "blame")
            ]
            assert x["limit"] == pytest.approx(y["limit"], rel=1e-12)
            assert x["err"] == pytest.approx(y["err"], abs=x["limit"] / 20)


def _without_seconds(found: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in found.items() if key != "seconds"}


@pytest.mark.usefixtures("wrong_epsilon")
def test_a_failure_says_everything_and_how_to_repeat_it() -> None:
    done = run("1", "0", "-v", "--dumps", dump_folder("f32"), "--device", "cpu")
    assert done.exit_code == 1, done.output
    rows = [line.split()[0] for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert rows[:2] == ["0", "1"], "in the ladder's order, however they were asked for"
    facts = {line[4:16].strip(): line[16:] for line in done.stdout.splitlines() if line.startswith("    ")}
    wanted = "error reason index got wanted difference differing computed recording repeat".split()
    assert set(wanted) <= set(facts)
    assert facts["first wrong"].startswith("blk.0.attn_norm: its own error, in recording f32/")
    assert facts["computed"] == "in float32 on cpu" and facts["recording"].startswith("f32/")
    words = shlex.split(facts["repeat"])
    assert words[:3] == ["llama-ckpt", "validate", "1"]
    again = run(*words[2:], "--stop-on-failure")
    assert again.exit_code == 1 and "0 of 1 checkpoints pass" in again.stdout


@pytest.mark.usefixtures("wrong_epsilon")
def test_what_stands_on_a_failure_says_so_and_stopping_skips_it() -> None:
    words = ("1", "2", "--dumps", dump_folder("f32"), "--device", "cpu")
    checkpoints = json.loads(run(*words, "--json", "-").stdout)["checkpoints"]
    assert [one["verdict"] for one in checkpoints] == ["fail", "fail"]
    assert checkpoints[1]["reason"].endswith("it stands on 1, which failed")
    stopped = json.loads(run(*words, "--stop-on-failure", "--json", "-").stdout)["checkpoints"]
    assert [one["verdict"] for one in stopped] == ["fail", "skipped"]


def test_json_on_standard_output_is_json_alone() -> None:
    done = run("10", "--dumps", dump_folder("f32"), "--device", "cpu", "--json", "-")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["checkpoints"][0]["id"] == "10"
    assert "1 of 1 checkpoints pass" in done.stderr


def test_dumps_of_other_weights_are_bad_input(tmp_path: Path) -> None:
    made = tmp_path / "other.gguf"
    sizes = "--width 64 --heads 4 --ffn 96 --layers 1 --vocab 512".split()
    assert CliRunner().invoke(app, ["make-seeded", *sizes, "--out", str(made)]).exit_code == 0
    done = run("0", "--model", made, "--dumps", dump_folder("f32"))
    assert done.exit_code == 2
    assert done.stderr.startswith("llama-ckpt: error: ") and "weights" in done.stderr


def test_without_the_reference_only_oracle_only_can_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "small.gguf"
    sizes = "--width 64 --heads 4 --ffn 96 --layers 1 --vocab 512".split()
    assert CliRunner().invoke(app, ["make-seeded", *sizes, "--out", str(made)]).exit_code == 0
    monkeypatch.setattr("llama_ckpt.ladder.subjects.importlib.util.find_spec", lambda name: None)
    done = run("1", "--model", made, "--device", "cpu")
    assert done.exit_code == 1, done.output
    assert "llama.cpp: not compared" in done.stdout and "install" in done.stdout
    assert run("1", "--model", made, "--device", "cpu", "--oracle-only").exit_code == 0


@pytest.mark.llama_cpp
def test_a_model_without_dumps_is_recorded_first_and_can_be_recorded_by_hand(tmp_path: Path) -> None:
    made, dumps = tmp_path / "small.gguf", tmp_path / "dumps"
    sizes = "--width 64 --heads 4 --kv-heads 2 --ffn 96 --layers 2 --vocab 512 --type F32".split()
    assert CliRunner().invoke(app, ["make-seeded", *sizes, "--out", str(made)]).exit_code == 0
    recorded = run("--model", made, "--device", "cpu")
    assert recorded.exit_code == 0, recorded.output
    assert f"{len(ladder_of(0))} of {len(ladder_of(0))} checkpoints pass" in recorded.stdout
    words = ["--model", str(made), "--tokens", "1,300,301", "--positions-from", "5", "--max-tokens", "3"]
    for name in ("first", "second"):
        said = CliRunner().invoke(app, ["capture", *words, "--name", name, "--out", str(dumps)])
        assert said.exit_code == 0 and "3 tokens, 2 blocks in full" in said.stdout, said.output
    held = run("3", "--model", made, "--dumps", dumps, "--device", "cpu", "--json", "-")
    assert held.exit_code == 0, held.output
    points = json.loads(held.stdout)["checkpoints"][0]["points"]
    tried = {label for point in points if not (label := point["dump"]).startswith("run/")}
    tried -= {one.label for one in QUICK}
    assert tried == {"dumps/first", "dumps/second"}


def test_the_repeat_of_the_example_fails_again() -> None:
    """What the example prints as a repeat is run as it stands, in the folder that it was printed in."""
    words = [sys.executable, "examples/wrong_epsilon.py", "1", "--device", "cpu"]
    words += ["--dumps", str(dump_folder("f32"))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (repeat,) = (line[16:] for line in done.stdout.splitlines() if line.startswith("    repeat"))
    again = subprocess.run(repeat, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "0 of 1 checkpoints pass" in again.stdout


def test_checkpoint_0_judges_embeddings_and_tokens_alone() -> None:
    report = json.loads(run("0", "--device", "cpu", "--json", "-").stdout)
    (checkpoint,) = report["checkpoints"]
    assert {point["name"] for point in checkpoint["points"]} == {"token_ids", "embd"}
