"""What a program was handed as mask, ids or positions says which rows belong together, or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama_ckpt.dumps.masks import Rows, rows_by_mask, rows_by_positions, rows_by_sequence

LOW = np.finfo(np.float32).min


def visible(sequences: list[int], padding_sees: Any = ()) -> NDArray[np.bool_]:
    """`[n, n]`: each row's own sequence backwards; -1 is padding, which sees these keys."""
    n = len(sequences)
    seen = np.zeros((n, n), bool)
    for i, own in enumerate(sequences):
        for j in range(i + 1):
            seen[i, j] = own >= 0 and sequences[j] == own
        if own < 0:
            seen[i, list(padding_sees)] = True
    return seen


def added(seen: NDArray[np.bool_], low: float = -np.inf) -> NDArray[np.float32]:
    return np.where(seen, 0.0, low).astype(np.float32)


TWO = Rows((0, 0, 1, 1, 1), (0,) * 5)
LEFT = Rows((-1, -1, 0, 0, 0), (1, 1, 0, 0, 0))
RIGHT = Rows((0, 0, 0, -1, -1), (0, 0, 0, 1, 1))


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        ([[0, 0, 1, 1, 1]], LEFT),
        ([[True, True, True, False, False]], RIGHT),
        ([[1, 1, 2, 2, 2]], TWO),
        ([[-np.inf, -np.inf, 0.0, 0.0, 0.0]], LEFT),
        (visible([0, 0, 1, 1, 1]), TWO),
        (added(visible([0, 0, 1, 1, 1]))[None, None], TWO),
        (np.tile(added(visible([0, 0, 1, 1, 1]), LOW), (1, 4, 1, 1)), TWO),
        (visible([-1, -1, 0, 0, 0]), LEFT),
        (visible([-1, -1, 0, 0, 0], range(5)), LEFT),
        (visible([0, 0, 0, -1, -1]), RIGHT),
        (np.pad(visible([0, 0, 1, 1, 1]), ((0, 0), (0, 7)))[None, None], TWO),
        ([[1, 1, 1, 1, 1]], None),
        (np.tril(np.ones((5, 5))), None),
    ],
)
def test_a_mask_of_sequences(mask: Any, wanted: Rows | None) -> None:
    assert rows_by_mask(np.asarray(mask), 5) == (wanted, None)


@pytest.mark.parametrize(
    "seen",
    [
        np.ones((5, 5), bool),
        np.triu(np.tril(np.ones((5, 5), bool)), -1),  # a window of two
        np.tril(np.ones((5, 5), bool)) | (np.arange(5) < 2),  # a prefix that sees all of itself
        np.stack([visible([0, 0, 1, 1, 1]), visible([0, 1, 1, 1, 1])])[None],  # heads that differ
    ],
)
def test_another_mask_declares_nothing_and_says_so(seen: NDArray[np.bool_]) -> None:
    rows, other = rows_by_mask(seen, 5)
    assert rows is None and other is not None and "none of sequences" in other


def test_ids_and_positions() -> None:
    assert rows_by_sequence(np.array([7, 7, 9, -1])) == Rows((7, 7, 9, -1), (0, 0, 0, 1))
    assert rows_by_sequence(np.array([3, 3, 3])) is None
    assert rows_by_positions([0, 1, 0, 1, 2]) == TWO
    assert rows_by_positions(range(5, 9)) is None and rows_by_positions(()) is None
