"""The committed runs of llama.cpp on the engine: several calls with its cache, tokens taken back.

A run of several sequences is an engine's each. What it says after each call is held against what llama.cpp
said there, and against the same tokens in one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch

from llama_ckpt.engine.engine import Engine, Precision
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.ladder.recorded_runs import RecordedRun, recorded_runs
from tools.make_runs import PLANS

__all__ = ["replay", "taken_back"]

CAPACITY = 16


def replay(precision: str, device: str, only: str = "") -> None:
    """Every run or one, every sequence of it."""
    runs = [one for one in recorded_runs(torch.float32, device) if one.situation.label.endswith(only)]
    assert len(runs) == (1 if only else len(PLANS))
    for run in runs:
        for sequence in sorted({number for _, number in run.situation.placed}):
            _hold(run, sequence, cast("Precision", precision))


def _hold(run: RecordedRun, sequence: int, precision: Precision) -> None:
    """A sequence's calls one after another; each time as llama.cpp, and as if there had been one call."""
    engine, whole = (Engine(run.model, precision, capacity=CAPACITY) for _ in range(2))
    recorded = torch.from_numpy(run.recording.tensors["logits"]).to(engine.device)
    limit = limit_for("logits", precision, "total").err
    context: list[int] = []
    for rows, at in _calls(run, sequence):
        if at < len(context):
            context = context[:at]
            engine.rewind(at)
        ids = [run.recording.token_ids[row] for row in rows]
        context += ids
        found = engine.prompt(ids).clone()
        whole.reset()
        for name, wanted in (("llama.cpp", recorded[rows[-1]]), ("one call", whole.prompt(context))):
            error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
            assert error <= limit, (run.situation.label, sequence, rows, name, error, limit)


def _calls(run: RecordedRun, sequence: int) -> Iterator[tuple[list[int], int]]:
    """The rows of each call that are a sequence's, and the position where they begin."""
    placed = run.situation.placed
    ends = [0]
    for n in run.situation.calls:
        ends.append(ends[-1] + n)
    for start, end in pairwise(ends):
        rows = [row for row in range(start, end) if placed[row][1] == sequence]
        if rows:
            yield rows, placed[rows[0]][0]


def taken_back(precision: str, device: str) -> None:
    """Tokens that were taken back leave no bit behind."""
    model = recorded_runs(torch.float32, device)[0].model
    first, others, then = [0, 42, 117, 7, 201], [9, 55, 130, 11], [88, 15, 260]
    said: list[torch.Tensor] = []
    for between in ([], others):
        engine = Engine(model, cast("Precision", precision), capacity=CAPACITY)
        engine.prompt(first)
        if between:
            engine.prompt(between[:3])
            engine.step(between[3])
            engine.rewind(len(first))
        said.append(engine.prompt(then).clone())
    assert torch.equal(*said)
