"""What was identified, in pictures: each kind of parameter gives one, and what cannot be drawn none."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from llama_ckpt.report.operator_pictures import MOST, pictures

DRAWN: dict[str, tuple[dict[str, Any], str, int]] = {
    "positions": ({"positions": [3, 4, 5], "own": [0, 1, 2]}, "position by row", 0),
    "frequencies": ({"frequencies": [1.0, 0.2], "own": [1.0, 0.1]}, "radians by pair", 0),
    "keys": ({"keys_seen": [[[0, 0]], [[0, 0]], [[1, 2]]]}, "keys seen by each row", 3),
    "curve": ({"curve": {"x": [-1.0, 0.0, 1.0], "y": [0.0, 0.5, 1.0]}}, "factor by gate", 0),
    "columns": ({"columns": [1.0, 0.0, 2.0]}, "coefficient by column", 0),
    "rows": ({"rows": [2, 0, 1]}, "row of the matrix by output", 3),
    "inputs": ({"inputs": [2, 0, 1]}, "input by column", 3),
    "of two products": ({"q": {"rows": [1, 0]}, "k": {"rows": [0]}}, "row of the matrix by output", 2),
}


@pytest.mark.parametrize("name", DRAWN)
def test_each_is_drawn(name: str) -> None:
    parameters, label, cells = DRAWN[name]
    drawn = list(pictures(parameters))
    root = ElementTree.fromstring(drawn[0])
    assert root.get("aria-label") == label
    assert drawn[0].count("<rect ") == cells
    assert len(drawn) == (2 if name == "of two products" else 1)


def test_what_is_too_fine_is_a_line_and_what_is_no_number_nothing() -> None:
    assert "<rect " not in next(pictures({"rows": list(range(MOST + 1))}))
    assert not "".join(pictures({"rows": [[0, 3]], "theta": 1e4, "read": "the zero point is 16"}))
