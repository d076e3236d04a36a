"""What angles cost, said of rotations that passed."""

from __future__ import annotations

import numpy as np

from llama_ckpt.diagnose.rope_rounding import cost_of_angles

FREQUENCIES = 10_000.0 ** (-np.arange(8) / 8)


def test_nothing_is_turned_at_position_0_and_nothing_is_said() -> None:
    """A prompt of one token whose numbers were rounded after the turn: no angle has cost that."""
    x = np.random.default_rng(0).normal(size=(1, 2, 16))
    assert cost_of_angles(x, np.float64(np.float16(x)), np.array([0]), FREQUENCIES) is None
    assert cost_of_angles(x, np.float64(np.float16(x)), np.array([1]), FREQUENCIES)
