"""Layers in the situations of real runs: ours pass; faults of caches, sequences and tiles are killed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import checkpoints
from llama_ckpt.ladder.climb import validate
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.ladder.implementation import load_implementation
from llama_ckpt.ladder.observer import Observer
from llama_ckpt.ladder.recorded_runs import run_trials
from llama_ckpt.ladder.situation_trial import TRIED, situation_trials
from llama_ckpt.ladder.situations import QUICK, THOROUGH
from llama_ckpt.mutants.runs.layers import LAYER_BUGS, attend, masked
from tests.comparing.ported_llama import seeded
from tests.draws import draws
from tools.make_runs import PLANS

Tensor = torch.Tensor
LADDER = {one.id: one for one in discover()}
OUR_SWIGLU = checkpoints.swiglu


def small() -> dict[str, Any]:
    """Options of `validate` for a small model, without llama.cpp."""
    return {"model": seeded(n_layers=2), "oracle_only": True, "device": "cpu"}


def failures(layer: Any, checkpoint: str, **options: Any) -> dict[str, str]:
    """The situations that fail, each with its first reason."""
    own = None if layer is None else load_implementation(layer, LADDER[checkpoint])
    trials = situation_trials(own, torch.float32, "cpu", **({"thorough": False} | options))
    found: dict[str, str] = {}
    for trial in trials:
        for verdict in trial.run(LADDER[checkpoint]):
            if verdict.verdict == "fail":
                found.setdefault(trial.situation.label, f"{verdict.name}: {verdict.reason}")
    return found


@pytest.mark.parametrize("checkpoint", [one.id for one in discover() if one.function.__name__ in TRIED])
def test_our_layers_pass_in_all_situations(checkpoint: str) -> None:
    assert failures(None, checkpoint, thorough=draws(0, 1) == 1) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_our_layers_pass_in_half_precision(dtype: torch.dtype) -> None:
    for trial in situation_trials(None, dtype, "cpu", thorough=False):
        for checkpoint in ("3", "6", "7"):
            for verdict in trial.run(LADDER[checkpoint]):
                assert verdict.verdict == "pass", (trial.situation.label, verdict.name, verdict.reason)


CACHED = "a cache, calls of 20, 12 and 1"
TAKEN_BACK = "a cache, the last 5 of 20 tokens taken back"
BUGS = {bug.name: bug.layer for bug in LAYER_BUGS}
WRONG = {
    "one-key-short": CACHED,
    "mask-at-the-top-left": CACHED,
    "free-slots-count": CACHED,
    "taken-back-and-still-seen": TAKEN_BACK,
    "sequences-not-told-apart": "two sequences in one call",
}
attention = masked(lambda seen, *_: seen, "attention")


@pytest.mark.parametrize("name", WRONG)
def test_attention_wrong_beyond_one_call_is_right_in_one(name: str) -> None:
    found = failures(BUGS[name], "3")
    assert WRONG[name] in found and "1 row" not in found, found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_layers_pass_on_what_llama_cpp_ran(dtype: torch.dtype) -> None:
    trials = run_trials(None, dtype, "cpu", Observer(), [])
    assert [one.situation.label.removeprefix("run/") for one in trials] == sorted(PLANS)
    for trial in trials:
        for checkpoint in ("3", "7", "8"):
            found = list(trial.run(LADDER[checkpoint]))
            assert found and {one.verdict for one in found} == {"pass"}, (trial.situation.label, found)
            assert any(one.blame == "noise" for one in found), "llama.cpp is compared"


@pytest.mark.parametrize(
    ("name", "run"), [("one-key-short", "one-by-one"), ("later-keys-of-a-chunk", "five-and-three")]
)
def test_a_wrong_layer_fails_on_what_llama_cpp_ran(name: str, run: str) -> None:
    own = load_implementation(BUGS[name], LADDER["3"])
    trials = {one.situation.label: one for one in run_trials(own, torch.float32, "cpu", Observer(), [])}
    reasons = [one.reason for one in trials[f"run/{run}"].run(LADDER["3"]) if one.verdict == "fail"]
    assert reasons and reasons[0].startswith("call ")


def test_a_right_attention_passes_with_a_cache_of_its_own_or_none() -> None:
    assert failures(attention, "3") == {}

    def own_cache(
        q: Tensor, k: Tensor, v: Tensor, wo: Tensor, *, positions: Tensor, cache: Any = None
    ) -> Tensor:
        """Keeps what it has seen in `cache.own`, as `explain 3` says."""
        if cache is None:
            return attention(q, k, v, wo, positions=positions)
        before = cache.own or (k[:0], v[:0], positions[:0])
        k, v, at = (torch.cat(pair) for pair in zip(before, (k, v, positions), strict=True))
        cache.own = (k, v, at)
        visible = at[None] <= positions[:, None]
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        probs = (torch.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
        return torch.einsum("hts,shd->thd", probs.softmax(-1), v).flatten(1) @ wo.T

    assert failures(own_cache, "3") == {}


def in_numpy(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    wo: NDArray[Any],
    *,
    positions: Any,
    cache: Any = None,
    sequence_ids: Any = None,
) -> NDArray[Any]:
    if cache is None:
        visible = positions[None] <= positions[:, None]
        if sequence_ids is not None:
            visible = visible & (sequence_ids[None] == sequence_ids[:, None])
    else:
        k, v = cache.update(k, v)
        visible = cache.visible(positions, sequence_ids)
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.float32(q.shape[-1] ** 0.5)
    scores = np.where(visible, scores, -np.inf)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    context = np.einsum("hts,shd->thd", e / e.sum(-1, keepdims=True), v)
    return context.reshape(len(q), -1).astype(np.float32) @ wo.T


def test_a_layer_in_numpy_is_handed_a_cache_of_arrays() -> None:
    assert failures(in_numpy, "3") == {}


def test_what_a_layer_does_not_take_is_said_and_not_held_against_it() -> None:
    def plain(q: Tensor, k: Tensor, v: Tensor, wo: Tensor, *, positions: Tensor) -> Tensor:
        return attend(q, k, v, wo, positions, None, None, lambda seen, *_: seen)

    report = validate("3", implementation=plain, **small())
    assert report.exit_code == 0, report.checkpoints[0].reason
    assert "it takes no cache, so several calls with a cache are not tried" in report.notes
    assert "it takes no sequence_ids, so several sequences are not tried" in report.notes
    assert "129 rows" in {point.dump for point in report.checkpoints[0].points}


def test_the_long_set_has_the_sizes_that_it_should() -> None:
    rows = {one.rows for one in THOROUGH}
    assert {1, 2, 31, 33, 129, 300} <= rows and set(QUICK) < set(THOROUGH)
    assert len({one.label for one in THOROUGH}) == len(THOROUGH)


def test_a_layer_that_gives_another_answer_each_time_is_told_so_first() -> None:
    calls = iter(range(1000))

    def race(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
        made = OUR_SWIGLU(x, w_gate, w_up, w_down)
        if next(calls) % 2:
            made[0, :3] *= 1.01
        return made

    found = failures(race, "6")
    assert found and all(": differs from itself: 3 of " in reason for reason in found.values()), found
    report = validate("6", implementation=race, **small())
    assert "(own): differs from itself: 3 of " in report.checkpoints[0].reason


def test_a_layer_is_tried_through_whole_generation() -> None:
    """A layer that only decoding asks for: right on each recording, wrong in the text."""

    right = validate(["3", "12"], implementation=attention, checkpoint="3", **small())
    assert [(one.id, one.verdict) for one in right.checkpoints] == [("3", "pass"), ("12", "pass")]
    wrong = validate(["12"], implementation=BUGS["one-key-short"], checkpoint="3", **small())
    assert wrong.checkpoints[0].verdict == "fail", wrong.checkpoints[0].reason


def test_a_layer_that_refuses_other_sizes_is_not_condemned_for_it() -> None:
    def written_for_64(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
        assert x.shape[1] == 64, "this kernel is for 64"
        return OUR_SWIGLU(x, w_gate, w_up, w_down)

    report = validate("6", implementation=written_for_64, **small())
    assert report.exit_code == 0 and any("this kernel is for 64" in note for note in report.notes)


def test_one_that_raises_with_a_cache_alone_fails() -> None:
    def no_cache(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        wo: Tensor,
        *,
        positions: Tensor,
        cache: Any = None,
        sequence_ids: Any = None,
    ) -> Tensor:
        if cache is not None:
            raise NotImplementedError("later")
        return attention(q, k, v, wo, positions=positions, sequence_ids=sequence_ids)

    assert "raised NotImplementedError: later" in failures(no_cache, "3")[CACHED]
