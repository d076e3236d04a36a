"""Runs of several calls on two ranks: right ones pass, and wrong ones are told with call and rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.points import split_name
from llama_ckpt.ranks.compare import compare_ranks
from llama_ckpt.report.comparison import comparison_lines
from tests.comparing.cache_bugs import PLANS, OneKeyShort
from tests.comparing.cached_port import CachedPort, written
from tests.comparing.ported_llama import Array, seeded

OF_HEADS = frozenset("q k v q_rope k_rope attn_scores attn_probs".split())
OF_FEATURES = frozenset("attn_context ffn_gate ffn_up ffn_swiglu logits".split())

Change = Callable[[int, int, str, Array], Array]


def judged(
    folder: Path,
    plan: str,
    program: type[CachedPort] = CachedPort,
    changed: Change = lambda call, rank, name, x: x,
    *,
    stacked: bool = False,
) -> Comparison:
    """A program's tensors as two ranks would hold them."""
    made = program(seeded())
    made.go(PLANS[plan])
    whole, paths = made.calls, []
    for rank in range(2):
        made.calls = [
            {name: changed(number, rank, name, shard(name, x, rank)) for name, x in call.items()}
            for number, call in enumerate(whole)
        ]
        paths.append(folder / f"rank{rank}.safetensors")
        written(made, paths[-1], stacked=stacked)
    return compare_ranks(paths, model=made.model)


def shard(name: str, x: Array, rank: int) -> Array:
    point = split_name(name)[1]
    axis = 1 if point in OF_HEADS else x.ndim - 1 if point in OF_FEATURES else None
    return x if axis is None else np.ascontiguousarray(np.split(x, 2, axis)[rank])


@pytest.mark.parametrize("plan", ["chunks", "batch", "rollback", "prefix"])
def test_a_right_run_passes(tmp_path: Path, plan: str) -> None:
    report = judged(tmp_path, plan, stacked=plan == "chunks")
    assert report.verdict == "pass" and not report.findings, report.reason
    assert [one.verdict for one in report.ranks] == ["pass", "pass"]


def test_a_fault_of_the_cache_is_every_ranks(tmp_path: Path) -> None:
    report = judged(tmp_path, "decode", OneKeyShort)
    assert "attn_scores is the first wrong point, made here in call 1" in report.reason
    assert "one key short" in report.reason
    assert [one.verdict for one in report.ranks] == ["fail", "fail"]


def test_one_ranks_fault_in_a_later_call_is_told_with_call_sequence_position_and_rank(tmp_path: Path) -> None:
    def doubled(call: int, rank: int, name: str, x: Array) -> Array:
        return x * 2 if (call, rank, name) == (1, 1, "blk.0.ffn_swiglu") else x

    report = judged(tmp_path, "batch", changed=doubled)
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.ffn_swiglu"
    assert [one.verdict for one in report.ranks] == ["pass", "fail"]
    lines = ["".join(part for part, _ in line) for line in comparison_lines(report, verbose=False)]
    (where,) = [line for line in lines if line.startswith("where ")]
    assert where.split(None, 1)[1].endswith("sequence 0, position 2; rank 1 of 2"), where
    assert where.split(None, 1)[1].startswith("call 1 ("), where
