"""Every comparison of the ladder can fail: one element of one point is changed, and that point must fail.

The element changes by a tenth of its row's size, in the last row, which is easiest to overlook; whole
numbers and what has to be exact change by the smallest step. Nothing but the changed point may fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import checkpoints
from llama_ckpt.judging.limits import EXACT
from llama_ckpt.ladder import trial as trials
from llama_ckpt.ladder.discovery import ladder_of
from llama_ckpt.ladder.trial import Trial
from llama_ckpt.points import MODEL_POINTS, Checkpoint, split_name
from tests.checkpoints.dump_trials import EIGHT_TOKENS

LADDER = {checkpoint.id: checkpoint for checkpoint in ladder_of(0)}  # of experts: tests/checkpoints
TENSORS = [(one.id, point) for one in LADDER.values() if one.id != "12" for point in one.points]


@pytest.fixture
def trial() -> Trial:
    """The float32 model on its eight recorded tokens."""
    return EIGHT_TOKENS.trial()


def changed(value: Any, point: str) -> Any:
    """A copy of a tensor, or list of ids, with one element wrong."""
    if isinstance(value, list):
        return [*value[:-1], value[-1] + 1]
    wrong = value.clone(memory_format=torch.contiguous_format)
    row = wrong if wrong.ndim == 1 else wrong[-1]
    element = row[(0,) * row.ndim]
    if point in EXACT or not wrong.is_floating_point():
        step = torch.nextafter(element, element + 1) - element if wrong.is_floating_point() else 1
    else:
        step = 0.1 * row.norm()
    row[(0,) * row.ndim] += step
    return wrong


def plain(name: str) -> str:
    """A point's neutral name: "blk.3.out" gives "out", "sampling.2" "sampling"."""
    return split_name(name)[1].split(".")[0]


def failing(verdicts: Iterator[Any]) -> set[str]:
    return {verdict.shown_name for verdict in verdicts if verdict.verdict == "fail"}


@pytest.mark.parametrize(("id", "point"), TENSORS)
def test_a_changed_element_fails_its_point_alone(
    id: str, point: str, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: set[str] = set()

    def run_case(function: Callable[..., Any], case: Any, *, taps: bool = True) -> dict[str, Any]:
        results = right(function, case, taps=taps)
        for name, value in results.items():
            if plain(name) == point and isinstance(value, torch.Tensor | list):
                results[name] = changed(value, point)
                wrong.update({name} if taps else {name, f"{name} (untapped)"})
        return results

    right = trials.run_case
    monkeypatch.setattr(trials, "run_case", run_case)
    found = failing(trial.judge_own(LADDER[id]))
    assert wrong, f"{point} was never compared"
    assert found == wrong


@pytest.mark.parametrize(
    "name", ["embd", "blk.0.attn_norm", "blk.8.attn_probs", "blk.31.out", "output_norm", "logits"]
)
def test_a_changed_element_fails_in_the_whole_run(name: str, trial: Trial) -> None:
    spoilt = dataclasses.replace(trial)
    vars(spoilt)["exact"] = trial.exact
    vars(spoilt)["whole_run"] = {**trial.whole_run, name: changed(trial.whole_run[name], name)}
    beside = {f"{name} (last row)"} if name in trial.recording.last_row else set()
    assert failing(spoilt.judge_total(name)) == {name} | beside


@pytest.mark.parametrize("name", [point.name for point in MODEL_POINTS] + ["blk.15.ffn_swiglu"])
def test_a_missing_point_fails(name: str, trial: Trial) -> None:
    spoilt = dataclasses.replace(trial)
    vars(spoilt)["exact"] = trial.exact
    vars(spoilt)["whole_run"] = {point: tensor for point, tensor in trial.whole_run.items() if point != name}
    if name == "logits":
        pytest.raises(KeyError, lambda: spoilt.whole_run["logits"])
    else:
        assert failing(spoilt.judge_total(name)) == {name}


@pytest.mark.parametrize(("field", "point"), [("id", "continuation"), ("text", "text")])
def test_a_changed_token_or_text_fails(
    field: str, point: str, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = checkpoints.generate
    calls = []

    def generate(*given: Any, **options: Any) -> Iterator[Any]:
        calls.append(given)
        for step, token in enumerate(right(*given, **options)):
            wrong = {"id": token.id + 1, "text": token.text + "!"}
            is_wrong = step == 1 and len(calls) == 1  # a token that differs is followed by another call
            yield dataclasses.replace(token, **{field: wrong[field]}) if is_wrong else token

    assert failing(trial.judge_own(LADDER["12"])) == set()
    monkeypatch.setattr(checkpoints, "generate", generate)
    assert point in failing(trial.judge_own(LADDER["12"]))


def test_every_checkpoint_compares_something() -> None:
    def answers(checkpoint: Checkpoint) -> bool:
        return bool(checkpoint.points)

    assert len(LADDER) >= 12 and all(map(answers, LADDER.values()))
