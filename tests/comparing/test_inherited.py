"""A wrong layer in the whole model fails its own checkpoint, and none that stands before or beside it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

import checkpoints.c01b_rope
import checkpoints.c07_block
from llama_ckpt.ladder.climb import validate
from reference_dumps import dump_folder

right_rope = checkpoints.c01b_rope.rope


def queries_only(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor, **more: Any) -> Any:
    return right_rope(q, k, positions, frequencies)[0], k


def test_only_who_makes_an_error_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checkpoints.c01b_rope, checkpoints.c07_block):
        monkeypatch.setattr(module, "rope", queries_only)
    report = validate(["1", "1B", "2", "3", "6", "7", "10"], dumps=dump_folder("f16"))
    verdicts = {checkpoint.id: checkpoint.verdict for checkpoint in report.checkpoints}
    assert [id for id, verdict in verdicts.items() if verdict == "pass"] == ["1", "2", "6", "10"]
    attention = report.checkpoints[3]  # makes no error either, and stands on who does
    assert attention.reason.endswith("; it stands on 1B, which failed")
    assert all(one.verdict.verdict == "pass" for one in attention.points)
    norms = report.checkpoints[0]
    carried = [one.verdict for one in norms.points if one.verdict.inherited]
    assert carried and all(one.error_kind == "total" and one.err > one.limit for one in carried)
    assert norms.reason == f"right, but {len(carried)} points carry on an error made elsewhere"
