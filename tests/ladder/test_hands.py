"""Several processes at one ladder: a verdict is told once, in order; a fork that goes wrong harms nothing."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import checkpoints.c06_swiglu
from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.ladder import climb, hands
from llama_ckpt.ladder.climb import validate
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.ladder.hands import many_hands

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")

HERE = os.getpid()
RUNGS = discover()[1:4]


@dataclass
class FakeTrial:
    """A trial of nothing; its verdict's reason is the process that it was judged in."""

    number: int
    does: Callable[[], object] = lambda: None
    verdict: Any = "pass"

    def run(self, checkpoint: Any) -> Iterator[PointVerdict]:
        time.sleep(0.01)
        self.does()
        yield PointVerdict(f"{checkpoint.id}.{self.number}", "own", self.verdict, "", str(os.getpid()))


@pytest.fixture(autouse=True)
def may_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "_may_fork", lambda: True)


def climbed(trials: list[FakeTrial], processes: int) -> list[list[PointVerdict]]:
    """What a climb tells, by checkpoint."""
    with many_hands(RUNGS, trials, processes) as others:
        found: list[list[PointVerdict]] = [[] for _ in RUNGS]
        for place, rung in enumerate(RUNGS):
            for number, trial in enumerate(trials):
                there = None if others is None else others.judged(place, number)
                found[place] += list(trial.run(rung)) if there is None else there
    return found


@pytest.mark.parametrize("processes", [2, 3, 9])
def test_each_is_told_once_in_order(processes: int) -> None:
    found = climbed([FakeTrial(number) for number in range(6)], processes)
    for rung, verdicts in zip(RUNGS, found, strict=True):
        assert [one.name for one in verdicts] == [f"{rung.id}.{number}" for number in range(6)]
    by = {one.reason for verdicts in found for one in verdicts}
    assert 2 <= len(by) <= min(processes, hands.MOST)
    assert found[0][-1].reason != str(HERE)  # the others begin behind


def not_here() -> None:
    if os.getpid() != HERE:
        os._exit(3)


def raises() -> None:
    raise ValueError("not readable")


def test_what_fails_there_is_judged_again_here() -> None:
    trials = [FakeTrial(0), FakeTrial(1), FakeTrial(2, verdict="fail")]
    for verdicts in climbed(trials, 2):
        assert [one.verdict for one in verdicts] == ["pass", "pass", "fail"]
        assert verdicts[-1].reason == str(HERE)
    with pytest.raises(ValueError, match="not readable"):
        climbed([FakeTrial(0), FakeTrial(1, does=raises)], 2)


def test_a_fork_that_ends_too_soon_costs_time_only() -> None:
    found = climbed([FakeTrial(number, does=not_here) for number in range(3)], 2)
    assert {one.reason for verdicts in found for one in verdicts} == {str(HERE)}


def test_one_alone_where_forking_is_not_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    go, trials = threading.Event(), [FakeTrial(0), FakeTrial(1)]
    other = threading.Thread(target=go.wait)
    other.start()
    try:
        with many_hands(RUNGS, trials, 2) as found:
            assert found is None
    finally:
        go.set()
        other.join()
    with many_hands(RUNGS, trials, 1) as found:
        assert found is None


def wrong(*given: Any, **options: Any) -> torch.Tensor:
    return right(*given, **options) * 1.01


right = checkpoints.c06_swiglu.swiglu


@pytest.mark.parametrize("layer", [right, wrong])
def test_the_report_is_that_of_one_process(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints.c06_swiglu, "swiglu", layer)
    reports = []
    for processes in (2, 1):
        monkeypatch.setattr(climb, "fitted_threads", lambda _, n=processes: nullcontext(n))
        report = validate(["1", "6"], device="cpu", oracle_only=True).to_json()
        reports.append([{**one, "seconds": 0} for one in report["checkpoints"]])
    assert repr(reports[0]) == repr(reports[1])
    assert reports[0][-1]["verdict"] == ("pass" if layer is right else "fail")
