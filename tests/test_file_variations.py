"""Every variation of a file is taken with llama.cpp's numbers, or refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.file_variations import PAGE, VARIATIONS, Row, page, rows


@pytest.mark.llama_cpp
def test_here_and_llama_cpp(tmp_path: Path) -> None:
    table = list(rows(tmp_path))
    assert len(table) == len(VARIATIONS) >= 60
    assert [row for row in table if not row.agrees] == []
    assert sum(row.error is not None for row in table) >= 40
    assert sum(bool(row.here and row.there) for row in table) >= 15


def test_the_page_has_them_all() -> None:
    written = PAGE.read_text(encoding="utf-8")
    names = [
        line.split(" | ")[0].removeprefix("| ") for line in written.splitlines() if line.startswith("| ")
    ]
    assert names == ["file", "---", *VARIATIONS], "run `python -m tests.file_variations --write`"
    assert f"None of {len(VARIATIONS)} is taken" in written
    assert "| odd | 1e-06 |  | yes |" in page([Row("odd", "", "a reason", 1e-6, 2e-5)])


@pytest.mark.parametrize(
    ("row", "agrees"),
    [
        (Row("same", "", "", 1e-6, 2e-5), True),
        (Row("other numbers", "", "", 1e-4, 2e-5), False),
        (Row("refused there alone", "", "wrong shape", None, 2e-5), False),
        (Row("refused here", "m.gguf: a key: got 1, wanted 2", "", None, 2e-5), True),
        (Row("refused without a word", "no", "", None, 2e-5), False),
    ],
    ids=lambda one: one.name if isinstance(one, Row) else "",
)
def test_what_counts_as_agreement(row: Row, agrees: bool) -> None:
    assert row.agrees is agrees
