"""How a model is said to lie over its ranks: lines that are read, and lines that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_ckpt.errors import OptionError
from llama_ckpt.points import POINTS
from llama_ckpt.ranks.plan import DEFAULT, Cut, read_plan


def plan(folder: Path, text: str) -> Path:
    path = folder / "plan.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_point_is_cut_in_some_way_without_a_plan() -> None:
    assert set(DEFAULT) == set(POINTS)
    assert DEFAULT["q"] == Cut("heads") and DEFAULT["attn_out"] == Cut("partial sums")
    assert not DEFAULT["out"].is_shard and DEFAULT["logits"].is_shard


def test_lines_are_laid_over_the_default(tmp_path: Path) -> None:
    text = "# ours\nffn_out: replicated\nq, k v: heads\nlogits: vocabulary 160 161 # padded\n"
    text += "blocks: 0-1, 2-3\nblocks: 4"
    found = read_plan(plan(tmp_path, text))
    assert found.cuts["ffn_out"] == Cut("replicated") and found.cuts["v"] == Cut("heads")
    assert found.cuts["logits"] == Cut("vocabulary", (160, 161))
    assert found.cuts["attn_out"] == DEFAULT["attn_out"]
    assert found.stages == (range(2), range(2, 4), range(4, 5))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q heads", "got 'q heads', wanted a point and how it is cut"),
        ("qq: heads", "got 'qq', wanted blocks, or one of embd"),
        ("q: rows", "got sequence parallel.*is not supported"),
        ("ffn_gate: experts", "got expert parallel.*expert parallel is not supported"),
        ("expert: 0-3", "expert parallel, wanted a plan without: it is not supported"),
        ("attn_norm: sequence", "got sequence parallel.*is not supported"),
        ("q: by colour", "got 'by colour', wanted heads, features"),
        ("q: vocabulary", "got vocabulary, wanted heads, replicated"),
        ("attn_out: partial sums 3 4", "wanted partial sums alone"),
        ("blocks: 3-1", "got '3-1', wanted a range"),
        ("blocks: 0-1, 3-4", "a stage from 3 where the one before ends at 1"),
    ],
)
def test_what_is_no_plan_is_refused_by_name(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        read_plan(plan(tmp_path, line))


def test_a_plan_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be opened: .*, wanted a plan"):
        read_plan(tmp_path / "none.txt")
