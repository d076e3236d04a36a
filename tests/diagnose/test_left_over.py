"""What leaves a tensor further off than it is explains nothing, however wide the limits are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_ckpt.comparing import explaining
from llama_ckpt.diagnose.bugs import Bug
from llama_ckpt.diagnose.named import name_bugs
from llama_ckpt.diagnose.patched_oracle import RIGHT
from llama_ckpt.diagnose.records import NamedBug
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.judging.matching import distance, passes
from tests.comparing.ported_llama import Array, Port, compared, seeded
from tests.diagnose.test_named import norm_case

POINT = "blk.3.ffn_norm"


def bug_that_gives(p: Array) -> Bug:
    def rms_norm(right: Any, x: Any, weight: Any, *, eps: float, tap: Any = None) -> Array:
        return p

    return Bug("norm-made-up", "the norm is made up", "1", "rms_norm", rms_norm)


def test_a_bug_within_wide_limits_that_leaves_more_than_there_is_explains_nothing() -> None:
    case = norm_case()
    o = RIGHT.answers(case)[POINT]
    limit = replace(
        limit_for(POINT, "float32", "own"), err=1e-2, row_err=2e-2, element_err=5e-2, gain=1e-2, bias=1e-2
    )
    x = o.copy()
    x[2, 5] += 0.08  # one element beyond its limit, and a small error of the whole
    off = 8e-3 * np.random.default_rng(0).choice([-1.0, 1.0], o.shape)
    off[2, 5] = 0.06
    further = o + off
    evidence = [Evidence(POINT, x, o, limit, case)]
    assert not passes(x, o, limit) and passes(x, further, limit)
    assert distance(x, further) > 2 * distance(x, o)
    found, _ = name_bugs(evidence, among=[bug_that_gives(further)])
    assert not any(one.explained for one in found)
    nearer = o.copy()
    nearer[2, 5] += 0.06
    found, _ = name_bugs(evidence, among=[bug_that_gives(nearer)])
    assert [one.explained for one in found] == [True]


class NoKnownGate(Port):
    """A gate that no catalogue has, wrong otherwise in each element."""

    def gated(self, gate: Array, up: Array) -> Array:
        off = np.random.default_rng(1).standard_normal(gate.shape).astype(np.float32)
        return np.asarray(super().gated(gate, up) + np.float32(0.01) * off * np.abs(up))


@pytest.mark.parametrize(("share", "offered"), [(0.5, True), (2.0, False)])
def test_a_bug_of_the_whole_block_is_offered_where_it_leaves_less(
    share: float, offered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = compared(NoKnownGate(seeded(n_layers=1)), tmp_path, 12)
    assert right.first_wrong is not None and right.first_wrong.name == "blk.0.ffn_swiglu"
    left = share * right.diagnoses[0].err
    of_the_block = NamedBug("block-made-up", "the block is made up", left, explained=True)
    monkeypatch.setattr(explaining, "name_bugs", lambda *_, **__: ([of_the_block], []))
    report = compared(NoKnownGate(seeded(n_layers=1)), tmp_path, 12)
    assert ("the block is made up" in report.reason) == offered
