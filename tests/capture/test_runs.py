"""Runs of several calls through llama.cpp: chunks, steps, batches, rollbacks, copied prefixes, all right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llama_ckpt.capture.plan import Decode, Plan, Rows, plan_from_json, plan_of, plan_to_json
from llama_ckpt.capture.run_file import capture_run
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.dumps.sequences import sequences_of
from llama_ckpt.dumps.theirs import open_their_dump
from llama_ckpt.errors import OptionError
from tests.comparing.ported_llama import prompt, seeded

P = prompt(16)
SECOND = [1, *P[9:12]]

PLANS: dict[str, Plan] = {
    "chunks": plan_of([P[:8]], chunks=[5]),
    "one by one": plan_of([P[:4]], chunks=[1, 1, 1]),
    "decode": plan_of([P[:4]], decode=3),
    "two in a batch": plan_of([P[:4], SECOND], decode=1),
    "rollback": plan_of([P[:5]], decode=3, rollback=3, then=P[8:10]),
    "shared prefix": plan_of([P[:5]], share=4, continued=P[7:9]),
}


@pytest.mark.llama_cpp
@pytest.mark.parametrize("name", PLANS)
def test_llama_cpp_is_right_in_every_run(tmp_path: Path, name: str) -> None:
    capture_run(seeded(), PLANS[name], out=tmp_path / "run.safetensors")
    report = compare_dump(tmp_path / "run.safetensors", model=seeded())
    assert report.verdict == "pass" and not report.findings, report.reason
    assert all(one.compared == one.of == 54 for one in report.sequences)


@pytest.mark.llama_cpp
def test_a_prompt_in_chunks_and_a_rollback_are_what_the_whole_is(tmp_path: Path) -> None:
    whole = plan_of([P[:8]])
    parts = plan_of([[*P[:5], 7, 8]], chunks=[3], rollback=2, then=P[5:8])
    last = []
    for name, plan in (("whole", whole), ("parts", parts)):
        capture_run(seeded(), plan, out=tmp_path / name)
        last.append(sequences_of(open_their_dump(tmp_path / name))[-1])
    assert [part.declared.token_ids for part in last] == [tuple(P[:8])] * 2
    for point in ("blk.0.k_rope", "blk.2.attn_probs", "blk.2.out", "logits"):
        a, b = (part.raw(point) for part in last)
        assert np.abs(a - b).max() <= 2e-5 * np.abs(a).max(), point


def test_a_plan_goes_to_another_process_and_back() -> None:
    for plan in PLANS.values():
        assert plan_from_json(plan_to_json(plan)) == plan
    assert PLANS["two in a batch"][0] == Rows(tuple((s, (P, SECOND)[s][i]) for i in range(4) for s in (0, 1)))
    assert PLANS["decode"][1] == Decode(3)


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"chunks": [0]}, "--chunks"), ({"rollback": 8}, "--rollback"), ({"share": 9}, "--share")],
)
def test_what_there_are_not_so_many_tokens_for_is_refused(asked: dict[str, int], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        plan_of([P[:8]], **asked)  # type: ignore[arg-type]
