"""What the README and docs/diagnosis.md show of a terminal is what the commands print today."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tools import transcripts
from tools.transcripts import ROOT, TRANSCRIPTS, Transcript


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda one: f"{one.page}: {one.command}")
def test_a_page_shows_what_the_command_prints(transcript: Transcript) -> None:
    printed = transcript.printed()
    assert transcripts.settled(transcript.on_the_page()) == transcripts.settled(printed), "run `make docs`"


@pytest.mark.parametrize("page", sorted({one.page for one in TRANSCRIPTS}))
def test_no_command_of_a_page_is_forgotten(page: str) -> None:
    shown = re.findall(r"^\$ (.+)$", (ROOT / page).read_text("utf-8"), re.M)
    assert shown == [one.command for one in TRANSCRIPTS if one.page == page]


def test_a_transcript_is_written_into_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(transcripts, "ROOT", tmp_path)
    one, before = TRANSCRIPTS[0], (tmp_path / "README.md").read_text("utf-8")
    shown = one.on_the_page()
    assert not one.is_out_of_date(re.sub(r"\d+\.\d s\n", "99.9 s\n", shown))
    changed = shown.replace("FAIL  blk.7", "FAIL  blk.8")
    assert one.is_out_of_date(changed)
    one.put(changed)
    assert (tmp_path / "README.md").read_text("utf-8") == before.replace("FAIL  blk.7", "FAIL  blk.8", 1)
    one.put(shown)
    assert (tmp_path / "README.md").read_text("utf-8") == before


def test_a_table_in_the_readme_fits_a_terminal() -> None:
    for one in TRANSCRIPTS:
        for line in one.on_the_page().splitlines() if one.page == "README.md" else ():
            assert len(line) <= 80 or line.lstrip().startswith(("reference ", "looks like ")), line
