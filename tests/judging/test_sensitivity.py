"""Limits that follow from the data are no blunter than the constants before: small changes are caught."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tools.measure_sensitivity import CHANGES, Change, embedded_prompt, judged_cases, smallest_caught

SEEN = [change for change in CHANGES if change.checkpoint in ("1", "2", "3", "6")]
"""What the suite tries; `python -m tools.measure_sensitivity` tries all, at 2 and at 300 tokens."""


@pytest.fixture(scope="module")
def calls() -> dict[str, Sequence[Any]]:
    given = embedded_prompt(2)
    return {one: list(judged_cases(given, one)) for one in dict.fromkeys(c.checkpoint for c in SEEN)}


@pytest.mark.parametrize("change", SEEN, ids=lambda one: one.what)
def test_no_larger_change_is_needed_than_before(change: Change, calls: dict[str, Sequence[Any]]) -> None:
    table, data = smallest_caught(change, calls[change.checkpoint])
    assert data <= table * 1.01
    most = 0.05 if "epsilon" in change.what else 5e-6
    assert 1e-8 < data < most
