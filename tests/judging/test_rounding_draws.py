"""Right programs over drawn shapes, numbers, precisions and orders of sums: none is condemned.

A small draw of what `python -m tools.measure_rounding` draws 100,000 judged points of; docs/rounding.md has
how close the worst of those came.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.measure_rounding import METRICS, Most, Use, judged, measure_draws, page
from tools.measured_draws import STEPS, draw_case

DRAWS = 3
"""Of each step and precision; the tool's own begin at 0."""


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("step", STEPS)
def test_a_right_program_is_never_condemned(step: str, dtype: str) -> None:
    points = 0
    for number in range(500_000, 500_000 + DRAWS):
        for use in judged(number, step, dtype):
            points += 1
            assert max(use.used) <= 1, (use, draw_case(number, step, dtype).about)
    assert points >= DRAWS


def test_pieces_are_put_together_on_a_page(tmp_path: Path) -> None:
    pieces = [tmp_path / "a.json", tmp_path / "b.json"]
    for start, piece in enumerate(pieces):
        measure_draws(20, start=10 * start, steps=("add",), dtypes=("float32",), out=piece)
    written = page(pieces)
    assert "0 false alarms" in written and "| float32 | add | 0." in written


def test_a_false_alarm_is_told() -> None:
    most = Most()
    most.see(Use("rope", "float32", "q_rope", "one", 7, (0.5, 0.5, 0.5, 0.5, 0.5, 1.5)))
    most.see(Use("rope", "float32", "k_rope", "one", 7, (0.9, 0.5, 0.5, 0.5, 0.5, 0.1)))
    piece = most.piece()
    assert piece.alarms == ["float32 rope q_rope, one, draw 7"]
    assert piece.worst == [("float32", "rope", [0.9, 0.5, 0.5, 0.5, 0.5, 1.5])] and len(METRICS) == 6
