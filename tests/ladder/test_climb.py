"""What a checkpoint's points come to: a verdict, one sentence, and an exit code that nothing cannot win."""

from __future__ import annotations

import pytest

from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.ladder.climb import conclude
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.ladder.report import CheckpointResult, JudgedPoint, LadderReport
from llama_ckpt.report.junit import junit
from llama_ckpt.report.view import view

NORM = next(one for one in discover() if one.id == "1")
POINT = PointVerdict("blk.0.attn_norm", "own", "pass", "", "", err=0.0, limit=1.0, n_judged=8)
UNJUDGED = PointVerdict("blk.0.attn_norm", "own", "pass", "", "", err=0.0, limit=1.0, n_judged=0)


def concluded(*points: PointVerdict, hidden: tuple[str, ...] = ()) -> CheckpointResult:
    judged = [JudgedPoint("f32/hello", one) for one in points]
    result = CheckpointResult(NORM.id, NORM.title, points=judged, hidden=hidden)
    conclude(result, NORM, ())
    return result


def report_of(*results: CheckpointResult) -> LadderReport:
    return LadderReport("m.gguf", "cpu", "float32", [], True, list(results))


@pytest.mark.parametrize("points", [(), (UNJUDGED,)])
def test_a_checkpoint_without_a_judged_element_fails(points: tuple[PointVerdict, ...]) -> None:
    result = concluded(*points)
    assert (result.verdict, result.reason, result.compared) == ("fail", "nothing was compared", 0)
    assert report_of(result).exit_code == 1


def test_one_judged_point_is_enough() -> None:
    result = concluded(POINT, UNJUDGED)
    assert (result.verdict, result.compared, result.of) == ("pass", 1, 2)
    assert report_of(result).exit_code == 0


def test_a_hidden_checkpoint_counts_neither_way() -> None:
    hidden = concluded(hidden=("attn_norm",))
    assert hidden.verdict == "hidden"
    alone, both = report_of(hidden), report_of(hidden, concluded(POINT))
    assert (alone.exit_code, both.exit_code) == (1, 0)
    assert report_of(hidden, concluded(UNJUDGED)).exit_code == 1
    assert 'failures="0" skipped="1"' in junit(both.to_json())


def test_the_page_says_of_a_run_what_its_exit_code_says() -> None:
    hidden = concluded(hidden=("attn_norm",))
    alone, both = (view(report_of(*some).to_json()) for some in ([hidden], [hidden, concluded(POINT)]))
    assert (alone.verdict, alone.sentence) == ("fail", "nothing was compared")
    assert ("checkpoints", "0 of 0 pass, 1 hidden") in alone.facts
    assert both.verdict == "pass" and ("checkpoints", "1 of 1 pass, 1 hidden") in both.facts


def test_a_report_of_no_checkpoint_is_no_success() -> None:
    assert report_of().exit_code == 1
