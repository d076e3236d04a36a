"""Right programs with caches and batches that write their columns as they have them: nothing is condemned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.comparing.cache_bugs import PLANS, P
from tests.comparing.cached_port import CachedPort, Remove, Share, Step, compared
from tests.comparing.ported_llama import Array, seeded
from tests.draws import draws

ROOM = 16


def widened(x: Array, probs: Array, is_scores: bool, fill: float) -> Array:
    """As many columns as a static cache has slots."""
    filled = np.full((*x.shape[:2], ROOM - x.shape[2]), fill if is_scores else 0.0, np.float32)
    return np.concatenate([x, filled], axis=-1)


WRITTEN: dict[str, Callable[[Array, Array, bool], Array]] = {
    "a static cache": lambda x, p, s: widened(x, p, s, 0.0),
    "a static cache, masked": lambda x, p, s: widened(x, p, s, -np.inf),
    "a static cache, what was there": lambda x, p, s: widened(x, p, s, 7.5),
    "masked scores": lambda x, p, s: np.where(p == 0, -np.inf, x) if s else x,
    "scores masked by a large number": lambda x, p, s: np.where(p == 0, -1e9, x) if s else x,
    "columns backwards": lambda x, p, s: x[..., ::-1],
    "new keys first": lambda x, p, s: np.roll(x, len(x), -1),
    "as they are": lambda x, p, s: x,
}
"""How scores and probabilities are written: one of both, the probabilities, whether the first is scores."""

MORE: dict[str, list[Step | Remove | Share]] = {
    "guessed tokens": [
        *(Step.of(P[:5]), Step.of(P[5:9]), Remove(0, 7), Step.of(P[9:12])),
        *(Remove(0, 8), Step.of(P[12:14]), Step.of([P[14]])),
    ],
    "a sequence ends, one begins": [
        Step(((0, P[0]), (1, P[0]), (0, P[3]), (1, P[4]))),
        Step(((0, P[6]), (1, P[7]))),
        Step(((1, P[9]),)),
        Step(((2, P[0]), (1, P[3]), (2, P[5]))),
    ],
    "a slot is used again": [
        *(Step.of(P[:4]), Remove(0, 0), Step.of(P[:4]), Remove(0, 0), Step.of([1, *P[6:9]])),
    ],
    "a tree": [
        *(Step.of(P[:4]), Share(0, 1, 4), Share(0, 2, 3), Step(((1, P[5]), (2, P[6]), (0, P[7])))),
        Step(((1, P[8]), (2, P[9]), (0, P[10]))),
    ],
    "the same token again": [Step.of(P[:5]), Step.of([P[5]]), Remove(0, 5), Step.of([P[5]])],
}

CASES = [
    *((how, plan) for how in list(WRITTEN)[:-1] for plan in ("decode", "batch", "rollback", "prefix")),
    *(("as they are", plan) for plan in MORE),
    *(("a static cache", plan) for plan in MORE),
]


@pytest.mark.parametrize(("how", "plan"), CASES[:: draws(3, 1)])
def test_a_right_program_passes(tmp_path: Path, how: str, plan: str) -> None:
    program = CachedPort(seeded())
    program.go((PLANS | MORE)[plan])
    for call in program.calls:
        for name in [name for name in call if name.endswith(("scores", "probs"))]:
            at = name.removesuffix("scores").removesuffix("probs")
            given = {key: np.array(call[at + key]) for key in ("scores", "probs")}
            if name.endswith("probs"):
                for key, x in given.items():
                    call[at + key] = WRITTEN[how](x, given["probs"], key == "scores").astype(np.float32)
    report = compared(program, tmp_path)
    assert report.verdict == "pass" and not report.findings, report.reason
