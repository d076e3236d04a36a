"""Two dumps of one program: equal ones, where they first differ, and what cannot be held together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llama_ckpt.comparing.two_dumps import compare_two
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.errors import DumpError


def dump(path: Path, **points: object) -> Path:
    tensors = {name.replace("__", "."): np.asarray(x, np.float32) for name, x in points.items()}
    save_dump(path, tensors, token_ids=[1, 2], positions=[0, 1])
    return path


def test_equal_dumps_are_equal_where_both_have_nan(tmp_path: Path) -> None:
    x = [[1, np.nan, -np.inf], [2, 3, 4]]
    found = compare_two(dump(tmp_path / "a", embd=x), dump(tmp_path / "b", embd=x))
    assert found.exit_code == 0 and found.sentence() == "all 1 points that both hold are equal, bit for bit"


def test_the_first_difference_is_the_first_in_the_flow(tmp_path: Path) -> None:
    x = np.ones((2, 64))
    y = x.copy()
    y[0, :3] += 1e-3
    a = dump(tmp_path / "a", embd=x, blk__0__out=x, blk__0__attn_norm=x, logits=x)
    b = dump(tmp_path / "b", embd=x, blk__0__out=y, blk__0__attn_norm=y, blk__1__out=x)
    found = compare_two(a, b)
    said = "they first differ at blk.0.attn_norm: 3 of 128 elements, 2e-4; 1 of the 3 points that both hold"
    assert found.exit_code == 1 and found.sentence().startswith(said)
    assert found.alone == ("blk.1.out", "logits") and list(found.lines())[-1] == found.sentence()
    assert found.to_json()["differing"][1]["name"] == "blk.0.out"


def test_shapes_and_runs_that_differ_are_said(tmp_path: Path) -> None:
    a = dump(tmp_path / "a", embd=np.ones((2, 4)), logits=[[1, 2]])
    b = dump(tmp_path / "b", embd=np.ones((3, 4)), logits=[[1, np.inf]])
    save_dump(tmp_path / "c", {"embd": np.ones((2, 4))}, token_ids=[1, 3])
    found = compare_two(a, b)
    assert found.differing[0].sentence() == "embd: shapes [2, 4] and [3, 4]"
    assert found.differing[1].n == 1 and found.to_json()["differing"][1]["error"] is None
    assert compare_two(a, tmp_path / "c").said == ("token_ids are not the same",)


def test_dumps_of_other_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="no point in common"):
        compare_two(dump(tmp_path / "a", embd=[[1]]), dump(tmp_path / "b", logits=[[1]]))
