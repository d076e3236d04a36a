"""Rows of several sequences and padding: each sequence is judged as it would be alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.names_map import DumpMap, Rule
from llama_ckpt.dumps.sequences import sequences_of
from llama_ckpt.dumps.theirs import open_their_dump, save_dump
from llama_ckpt.errors import DumpError
from tests.comparing.their_programs import EIGHT, HELLO, Tensors, bug, right_run, run, write

PAD = 3
N = len(HELLO) + PAD + len(EIGHT)
ROWS: dict[str, Any] = {
    "token_ids": [*HELLO, *[0] * PAD, *EIGHT],
    "positions": [0, 1, *[0] * PAD, *range(len(EIGHT))],
    "sequences": [4] * len(HELLO) + [-1] * PAD + [9] * len(EIGHT),
    "padding": [0] * len(HELLO) + [1] * PAD + [0] * len(EIGHT),
}


def placed(x: NDArray[Any], at: int, is_square: bool) -> NDArray[Any]:
    """The rows among the N, and their keys among as many, which else get nothing."""
    if not is_square:
        return x
    keys = np.zeros((*x.shape[:2], N), np.float32)
    keys[:, :, at : at + len(x)] = x
    return keys


def together(first: Mapping[str, Any], second: Mapping[str, Any], names: Sequence[str] = ()) -> Tensors:
    """Two runs and padding between them, which holds NaN."""
    made = {}
    for name in names or first:
        is_square = name.endswith(("attn_scores", "attn_probs"))
        a, b = placed(first[name], 0, is_square), placed(second[name], len(HELLO) + PAD, is_square)
        made[name] = np.concatenate([a, np.full((PAD, *a.shape[1:]), np.nan, np.float32), b])
    return made


def judged(folder: Path, tensors: Tensors, **changed: Any) -> Comparison:
    return compare_dump(write(folder, tensors, **ROWS | changed))


def test_two_sequences_and_padding_pass_and_each_is_told_of(tmp_path: Path) -> None:
    report = judged(tmp_path, together(right_run(), right_run(EIGHT)))
    assert report.verdict == "pass", report.reason
    assert [(one.number, len(one.rows), one.verdict) for one in report.sequences] == [
        (4, 2, "pass"),
        (9, 8, "pass"),
    ]
    assert report.token_ids == HELLO and report.reference is not None and report.reference["dump"] == "hello"
    assert report.notes[0] == "3 of 13 rows are padding, and not judged"
    assert report.notes[1].endswith(
        "4 (2 rows) passes, 547 of 547 points, shown; 9 (8 rows) passes, 547 of 547 points"
    )
    assert report.to_json()["sequences"][1]["rows"] == list(range(5, 13))


def test_a_bug_is_found_in_the_sequence_that_has_it(tmp_path: Path) -> None:
    wrong = run(EIGHT, wrong=bug("rope-half-split"), blocks=[7])
    report = judged(tmp_path, together(right_run(), wrong))
    assert report.first_wrong is not None and report.first_wrong.name == "blk.7.q_rope"
    assert report.token_ids == EIGHT and [one.verdict for one in report.sequences] == ["pass", "fail"]
    assert "pairs (i, i+d/2)" in report.diagnoses[0].sentence()


def test_a_row_that_sees_what_is_not_its_own_is_told_of(tmp_path: Path) -> None:
    made = together(right_run(), right_run(EIGHT))
    made["blk.3.attn_probs"][6, 1, 1] = 0.25
    made["blk.4.attn_probs"][0, 0, 3] = 1e-9
    report = judged(tmp_path, made)
    assert [one.kind for one in report.findings] == ["sees_others"] * 2
    assert "row 6 sees row 1, which is of another sequence" in report.findings[0].message
    assert "row 0 sees row 3, which is padding" in report.findings[1].message


def test_positions_that_count_the_padding_are_told_of(tmp_path: Path) -> None:
    made = {
        name: x for name, x in run(positions=[3, 4]).items() if "scores" not in name and "probs" not in name
    }
    made = {name: np.concatenate([np.zeros((3, *x.shape[1:]), np.float32), x]) for name, x in made.items()}
    facts = {"token_ids": [0, 0, 0, *HELLO], "positions": range(5), "padding": [1, 1, 1, 0, 0]}
    report = compare_dump(write(tmp_path, made, **facts), partial=True)
    assert report.findings[0].kind == "other_positions"
    assert "the 3 rows of padding before them are counted" in report.findings[0].message


def test_only_the_last_rows_logits_are_those_of_the_sequence_that_ends_there(tmp_path: Path) -> None:
    made = together(right_run(), right_run(EIGHT), ["blk.3.out", "blk.31.out", "logits"])
    made["logits"] = made["logits"][-1:]
    report = judged(tmp_path, made)
    assert report.verdict == "pass", report.reason
    assert [one.compared for one in report.sequences] == [2, 3]


def test_the_rows_axis_is_found_where_a_map_says(tmp_path: Path) -> None:
    x = np.arange(2 * 5 * 3, dtype=np.float32).reshape(1, 2, 5, 3)
    save_dump(tmp_path / "t", {"q": x}, token_ids=range(5), padding=[1, 0, 0, 1, 0])
    rule = Rule("q", "blk.0.q", (("1",), ("head",), ("token",), ("head_dim",)))
    (only,) = sequences_of(open_their_dump(tmp_path / "t", DumpMap((rule,))))
    sizes = {"token": 3, "head": 2, "head_dim": 3}
    assert np.array_equal(only.read("blk.0.q", sizes), x[0].transpose(1, 0, 2)[[1, 2, 4]])
    assert only.declared.token_ids == (1, 2, 4) and only.rows == (1, 2, 4)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"padding": [1] * N}, "every row"),
        ({"sequences": [0]}, "one of each for each row"),
        ({"padding": [0, 1]}, "one of each for each row"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, facts: dict[str, Any], said: str) -> None:
    made = together(right_run(), right_run(EIGHT), ["logits"])
    with pytest.raises(DumpError, match=said):
        judged(tmp_path, made, **facts)
