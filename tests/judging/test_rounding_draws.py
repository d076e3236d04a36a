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


CONDEMNED = {
    "q and k times a root, whose equal numbers round alike": (700172, "attention", "bfloat16"),
    "a root next to a power of two": (1000198, "output_logits", "float16"),
    "an epsilon of about the distance of two numbers": (1000253, "rms_norm", "bfloat16"),
    "a sum of squares after a feature that dwarfs the rest": (1000436, "output_logits", "float32"),
    "a key that was nothing and has all": (1000374, "attention", "bfloat16"),
    "two keys that trade": (1000945, "attention", "bfloat16"),
    "slow cosines in half precision, the same for many tokens": (2000216, "rope", "bfloat16"),
    "a term less than the other's last digit, always lost": (3900346, "add", "bfloat16"),
    "gates and ups that are nothing beside what they are off by": (3200278, "block", "bfloat16"),
    "a softmax's sum, off for a whole head": (4100306, "attention", "float32"),
    "queries and keys of one root": (3700226, "block", "bfloat16"),
    "gates and ups that a norm's mean has off together": (2000965, "block", "bfloat16"),
    "roots of roots that were rounded": (2001576, "rms_norm", "bfloat16"),
    "sigmoids of tanh that are a few steps, all alike": (2000060, "block", "float32"),
}
"""Draws of which a right program was condemned once; why it errs more than chance."""


@pytest.mark.parametrize("number, step, dtype", CONDEMNED.values(), ids=CONDEMNED)
def test_what_was_condemned_once(number: int, step: str, dtype: str) -> None:
    assert max(max(use.used) for use in judged(number, step, dtype)) < 0.9


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
