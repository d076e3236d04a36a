"""Checkpoint 10: the greedy token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import argmax, c10_argmax
from checkpoints.c10_argmax import CHECKPOINT
from tests.checkpoints.drawn_inputs import DEVICES, DTYPES, Values, values
from tests.checkpoints.dump_trials import (
    EVERY_DUMP,
    DumpRun,
    check_a_point_fails,
    check_every_point,
    judge_own,
)
from tests.checkpoints.held_against import check_capturable, check_passes, check_same_bits, judged

INF, NAN = float("inf"), float("nan")
ROWS = st.lists(st.sampled_from([-INF, -1.0, -0.0, 0.0, 2.0, INF, NAN]), min_size=6, max_size=6)


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


@pytest.mark.parametrize("device", DEVICES)
@given(x=values(-20, 12), n=st.integers(1, 9), vocab=st.integers(1, 400), dtype=st.sampled_from(DTYPES))
@settings(max_examples=25)
def test_oracle(device: str, x: Values, n: int, vocab: int, dtype: torch.dtype) -> None:
    rows = x.tensor(n, vocab, dtype=dtype, device=device)
    check_passes(judged(argmax, {"logits": rows}, ["greedy_tokens"]))


@pytest.mark.parametrize("device", DEVICES)
@given(rows=st.lists(ROWS, min_size=1, max_size=4))
@settings(max_examples=100)
def test_oracle_on_ties_infinities_and_nan(device: str, rows: list[list[float]]) -> None:
    check_passes(judged(argmax, {"logits": torch.tensor(rows, device=device)}, ["greedy_tokens"]))


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ([1.0, 3.0, 3.0, 2.0], 1),
        ([0.0, 0.0, 0.0, 0.0], 0),
        ([-0.0, 0.0, -1.0, 0.0], 0),
        ([-INF, -INF, -5.0, -INF], 2),
        ([-INF, -INF, -INF, -INF], 0),
        ([1.0, INF, INF, 0.0], 1),
        ([1.0, NAN, 0.5, 2.0], 3),
        ([NAN, 1.0, 5.0, 2.0], 0),
        ([NAN, NAN, NAN, NAN], 0),
        ([-INF, NAN, NAN, -INF], 0),
    ],
)
def test_known_answers(row: list[float], wanted: int) -> None:
    found = argmax(torch.tensor(row))
    assert found.dtype == torch.int64 and found.shape == () and int(found) == wanted


def test_leading_axes_are_kept() -> None:
    x = Values(0).tensor(2, 3, 50, dtype=torch.float32)
    found = argmax(x)
    assert found.shape == (2, 3)
    assert torch.equal(found, torch.stack([argmax(rows) for rows in x]))


@given(x=values(), shift=st.integers(-8, 8))
@settings(max_examples=25)
def test_a_greater_logit_wins_and_order_is_all_that_counts(x: Values, shift: int) -> None:
    row = x.tensor(60, dtype=torch.float64)
    best = int(argmax(row))
    assert bool((row <= row[best]).all())
    assert int(argmax(row.exp())) == int(argmax(row * 2.0**shift)) == best
    row[7] = row.max() + 1
    assert int(argmax(row)) == 7


def test_two_runs_are_equal() -> None:
    check_same_bits(argmax, {"logits": torch.zeros(4, 1000)})


def test_capturable() -> None:
    check_capturable(argmax, {"logits": Values(0).tensor(3, 40, dtype=torch.float32)})


def last_but_one_row(logits: Tensor) -> Tensor:
    return argmax(logits.roll(1, 0))


def ids_off_by_one(logits: Tensor) -> Tensor:
    return argmax(logits) + 1


def smallest(logits: Tensor) -> Tensor:
    return argmax(-logits)


def second_best(logits: Tensor) -> Tensor:
    return logits.topk(2).indices[..., 1]


def of_magnitudes(logits: Tensor) -> Tensor:
    return argmax(logits.abs())


def padding_takes_part(logits: Tensor) -> Tensor:
    return argmax(torch.cat((logits, torch.full_like(logits[..., :1], 1e4)), -1))


def over_the_tokens(logits: Tensor) -> Tensor:
    return argmax(logits.T)


def quarter_of_the_vocabulary(logits: Tensor) -> Tensor:
    return argmax(logits[..., : logits.shape[-1] // 128])


WRONG = [
    last_but_one_row,
    ids_off_by_one,
    smallest,
    second_best,
    of_magnitudes,
    padding_takes_part,
    over_the_tokens,
    quarter_of_the_vocabulary,
]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_layer_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c10_argmax, "argmax", wrong)
    check_a_point_fails(judge_own(CHECKPOINT))


def highest_of_ties(logits: Tensor) -> Tensor:
    return logits.shape[-1] - 1 - argmax(logits.flip(-1))


def nan_is_the_largest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def nan_is_zero(logits: Tensor) -> Tensor:
    return argmax(logits.nan_to_num(0.0))


def rounded_to_float16_first(logits: Tensor) -> Tensor:
    return argmax(logits.half())


@pytest.mark.parametrize(
    "wrong", [highest_of_ties, nan_is_the_largest, nan_is_zero, rounded_to_float16_first]
)
def test_wrong_layer_fails_on_ties_and_nan(wrong: Callable[..., Any]) -> None:
    rows = torch.tensor(
        [[1.0, 3.0, 3.0, 2.0], [1.0, NAN, -0.5, 2.0], [-3.0, NAN, -1.0, -2.0], [0.0, 8.0, 8.001, 1.0]]
    )
    check_passes(judged(argmax, {"logits": rows}, ["greedy_tokens"]))
    check_a_point_fails(judged(wrong, {"logits": rows}, ["greedy_tokens"], function="argmax"))
