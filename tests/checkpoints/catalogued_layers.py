"""The catalogue's wrong programs as torch layers, so that a wrong layer is written down in one place only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from llama_ckpt.diagnose.bugs import Bug, catalogue
from llama_ckpt.diagnose.patched_oracle import RIGHT, DoesNotApply
from llama_ckpt.points import Checkpoint
from tests.checkpoints.dump_trials import check_a_point_fails, judge_own
from tests.checkpoints.held_against import exact

__all__ = ["check_catalogued_bugs_fail"]


def check_catalogued_bugs_fail(checkpoint: Checkpoint) -> None:
    """Every bug of the catalogue that a checkpoint must catch fails there, on the dump of eight tokens.

    One that this dump cannot show (a wrong group of one head, a position beyond 256) changes no element
    of any call, and is left to the models of `llama-ckpt mutants`; most of them show here.
    """
    bugs = [bug for bug in catalogue() if bug.checkpoint == checkpoint.id]
    shown = [bug.name for bug in bugs if _shows_and_fails(bug, checkpoint)]
    assert len(shown) > len(bugs) / 2, f"only {shown} of {[bug.name for bug in bugs]} show on this dump"


def _shows_and_fails(bug: Bug, checkpoint: Checkpoint) -> bool:
    name = checkpoint.function.__name__
    wrong = _Layer(getattr(bug.oracle, name), getattr(RIGHT, name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[checkpoint.function.__module__], name, wrong)
        try:
            verdicts = judge_own(checkpoint)
        except DoesNotApply:
            return False
    if wrong.differs:
        check_a_point_fails(verdicts)
    return wrong.differs


class _Layer:
    """A function of a patched oracle, called with torch tensors and answering with float32 ones.

    Attributes:
        differs: whether it has ever returned or shown anything else than the right function.
    """

    def __init__(self, wrong: Callable[..., Any], right: Callable[..., Any]) -> None:
        self.wrong, self.right, self.differs = wrong, right, False

    def __call__(self, tap: Callable[[str, Any], None] | None = None, **arguments: Any) -> Any:
        known = {name: exact(value) for name, value in arguments.items()}
        wanted = _answers(self.right, known, tap is not None)
        made = _answers(self.wrong, known, tap is not None)
        self.differs |= any(not np.array_equal(made[at], wanted[at], equal_nan=True) for at in wanted)
        tensors = {at: torch.as_tensor(np.asarray(array, np.float32)) for at, array in made.items()}
        returned = tuple(tensor for at, tensor in tensors.items() if isinstance(at, int))
        for at, tensor in tensors.items():
            if tap is not None and isinstance(at, str):
                tap(at, tensor)
        return returned if len(returned) > 1 else returned[0]


def _answers(function: Callable[..., Any], arguments: dict[str, Any], taps: bool) -> dict[str | int, Any]:
    """What a function shows by its own names, and what it returns by number."""
    seen: dict[str | int, Any] = {}
    options = {"tap": seen.__setitem__} if taps else {}
    with np.errstate(all="ignore"):
        returned = function(**arguments, **options)
    results = returned if isinstance(returned, tuple) else (returned,)
    return seen | dict(enumerate(results))
