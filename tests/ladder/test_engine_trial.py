"""The engine on trial: what it shows passes, what it hides is said, a wrong kernel is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import llama_ckpt as lc
from llama_ckpt.engine.engine import OBSERVABLE, Engine
from llama_ckpt.errors import DeviceError, OptionError
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.ladder.climb import conclude
from llama_ckpt.ladder.discovery import discover, ladder_of
from llama_ckpt.ladder.engine_trial import EngineTrial
from llama_ckpt.ladder.report import CheckpointResult, LadderReport
from llama_ckpt.ladder.subjects import select
from llama_ckpt.precisions import ENGINE_PRECISIONS
from llama_ckpt.report.junit import junit
from llama_ckpt.report.repeat import repeat_command
from llama_ckpt.report.terminal import summary_lines


def test_every_point_that_the_engine_shows_has_a_limit_in_both_precisions() -> None:
    for precision in ENGINE_PRECISIONS:
        for checkpoint in ladder_of(0):
            for point in {*checkpoint.points} & {*OBSERVABLE, "sampling"}:
                for error_kind in ("own", "total"):
                    limit = limit_for(point, precision, error_kind)  # type: ignore[arg-type]
                    assert limit.dtype in ("float32", "integer"), point


def test_what_the_engine_does_not_show_is_hidden_by_name() -> None:
    hidden = {one.id: EngineTrial.hidden_points(one) for one in discover()}
    wanted = {
        "0": (),
        "1": ("attn_norm", "ffn_norm", "output_norm"),
        "1B": (),
        "2": ("q", "k"),
        "3": ("attn_scores", "attn_probs", "attn_out"),
        "6": ("ffn_gate", "ffn_up", "ffn_out"),
        "7": (),
        "8": ("output_norm",),
        **dict.fromkeys(("9", "10", "11", "12"), ()),
    }
    assert {id: hidden[id] for id in wanted} == wanted


def test_fast_is_wider_than_high_and_both_than_nothing() -> None:
    fast, high = (limit_for("logits", precision, "total").err for precision in ("fast", "high"))
    assert 0 < high < fast < 0.05


def test_the_engine_wants_a_gpu_and_the_layers_place() -> None:
    with pytest.raises(DeviceError, match="engine fast: got cpu, wanted cuda; engine layers runs anywhere"):
        lc.validate("9", device="cpu", engine="fast")
    with pytest.raises(OptionError, match="dtype with engine fast: got float16, wanted float32"):
        lc.validate("9", device="cpu", engine="fast", dtype="float16")
    with pytest.raises(OptionError, match="engine: got quick, wanted layers or fast"):
        lc.validate("9", device="cpu", engine="quick")
    with pytest.raises(OptionError, match="precision: got exact"):
        lc.validate("9", device="cpu", engine="fast", precision="exact")
    with pytest.raises(OptionError, match="fast with an implementation"):
        lc.validate("1", device="cpu", engine="fast", implementation=lambda x, weight, *, eps: x)


def test_a_checkpoint_that_shows_nothing_is_hidden_and_alone_no_success() -> None:
    norm = next(one for one in discover() if one.id == "1")
    result = CheckpointResult("1", norm.title, hidden=EngineTrial.hidden_points(norm))
    conclude(result, norm, ())
    assert result.verdict == "hidden"
    assert "attn_norm" in result.reason
    report = LadderReport("m", "cuda", "float32", [], True, [result], engine="high")
    assert report.exit_code == 1 and "nothing was compared, so nothing is known: exit code 1" in [
        *summary_lines(report)
    ]
    report.checkpoints.append(CheckpointResult("2", "QKV", "pass", compared=1, of=1))
    assert report.exit_code == 0
    assert any("checkpoint 1: judged by what comes after" in line for line in summary_lines(report))
    assert "<skipped" in junit(report.to_json())
    assert report.to_json()["checkpoints"][0]["hidden"] == list(result.hidden)


def test_a_failure_is_repeated_with_the_engine() -> None:
    options = {"model": None, "dumps": None, "device": "cuda", "dtype": "float32", "oracle_only": False}
    line = repeat_command(["3"], **options, engine="fast", precision="high")  # type: ignore[arg-type]
    assert "--engine fast --precision high" in line


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ENGINE_PRECISIONS)
def test_the_embedded_model_passes(precision: str) -> None:
    report = lc.validate(device="cuda", engine="fast", precision=precision)
    verdicts = {result.id: (result.verdict, result.reason) for result in report.checkpoints}
    assert report.exit_code == 0, verdicts
    assert verdicts.pop("1")[0] == "hidden"
    assert {verdict for verdict, _ in verdicts.values()} == {"pass"}


@pytest.mark.cuda
def test_a_wrong_weight_in_the_kernels_is_found_in_its_block(tmp_path: Path) -> None:
    selection = select(None, None, device="cuda", dtype="float32", oracle_only=False, scratch=tmp_path)
    subject = next(iter(selection.subjects))
    blocks = list(subject.model.weights.blocks)
    blocks[15] = replace(blocks[15], wk=blocks[15].wk * 1.01)
    wrong = replace(subject.model, weights=replace(subject.model.weights, blocks=tuple(blocks)))
    trial = EngineTrial(subject, subject.recordings[0], Engine(wrong, "high", capacity=128))
    rope = next(one for one in discover() if one.id == "1B")
    bad = [v.name for v in trial.run(rope) if v.verdict == "fail" and v.error_kind == "own"]
    assert bad == ["blk.15.k_rope"]
