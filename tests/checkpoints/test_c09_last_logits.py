"""Checkpoint 9: the row that the next token is chosen from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import c09_last_logits, last_logits
from checkpoints.c09_last_logits import CHECKPOINT
from tests.checkpoints.drawn_inputs import DEVICES, DTYPES, Values, values
from tests.checkpoints.dump_trials import (
    EVERY_DUMP,
    DumpRun,
    check_a_point_fails,
    check_every_point,
    judge_own,
)
from tests.checkpoints.held_against import check_capturable, check_passes, check_same_bits, judged


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


@pytest.mark.parametrize("device", DEVICES)
@given(x=values(-20, 20), n=st.integers(1, 9), vocab=st.integers(1, 400))
@settings(max_examples=25)
def test_oracle(device: str, x: Values, n: int, vocab: int) -> None:
    rows = x.tensor(n, vocab, dtype=torch.float32, device=device)
    check_passes(judged(last_logits, {"logits": rows}, ["last_logits"]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(x=values(), n=st.integers(1, 5))
@settings(max_examples=10)
def test_bits_and_dtype_are_kept(dtype: torch.dtype, x: Values, n: int) -> None:
    rows = x.tensor(n, 33, dtype=dtype)
    rows[-1, 7] = float("nan")
    found = last_logits(rows)
    assert found.dtype == dtype and found.shape == (33,)
    assert torch.equal(found.view(torch.uint8), rows[n - 1].view(torch.uint8))


def test_nothing_is_copied() -> None:
    rows = torch.zeros(3, 8)
    assert last_logits(rows).data_ptr() == rows[2].data_ptr()


def test_two_runs_are_equal() -> None:
    check_same_bits(last_logits, {"logits": Values(0).tensor(3, 40, dtype=torch.float32)})


def test_capturable() -> None:
    check_capturable(last_logits, {"logits": torch.zeros(3, 40)})


def last_but_one(logits: Tensor) -> Tensor:
    return logits[-2]


def first_row(logits: Tensor) -> Tensor:
    return logits[0]


def padding_s_row(logits: Tensor) -> Tensor:
    return torch.cat((logits, torch.zeros_like(logits[:1])))[-1]


def mean_of_rows(logits: Tensor) -> Tensor:
    return logits.mean(0)


def stale(logits: Tensor) -> Tensor:
    kept = logits[-1].clone()
    kept[1000:] = logits[-2, 1000:]
    return kept


def rounded(logits: Tensor) -> Tensor:
    return logits[-1].half().float()


def one_bit_off(logits: Tensor) -> Tensor:
    row = logits[-1].clone()
    row[123] = torch.nextafter(row[123], row[123] + 1)
    return row


def all_rows(logits: Tensor) -> Tensor:
    return logits[-1:]


@pytest.mark.parametrize(
    "wrong", [last_but_one, first_row, padding_s_row, mean_of_rows, stale, rounded, one_bit_off, all_rows]
)
def test_wrong_layer_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c09_last_logits, "last_logits", wrong)
    check_a_point_fails(judge_own(CHECKPOINT))
