"""One vocabulary: every word of a report is explained before it is used, and in the same words everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

import reference_dumps
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.ladder.climb import validate
from llama_ckpt.report import terminal, words
from llama_ckpt.report.comparison import comparison_lines
from llama_ckpt.report.html import page
from tests.comparing.their_programs import bug, run, write

ROOT = Path(__file__).parents[2]
GONE = re.compile(r"\b(teacher|free-running|ours|target|fed (from|by) the|err)\b")
"""Words that went: of who computed something, of how a layer was fed, and the shortened error."""


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """RoPE wrong in one block, on the embedded model."""
    return compare_dump(write(tmp_path_factory.mktemp("dump"), run(wrong=bug("rope-half-split"), blocks=[7])))


def shown(report: Comparison, *, verbose: bool) -> list[str]:
    return ["".join(part for part, _ in line) for line in comparison_lines(report, verbose=verbose)]


def explained_before_used(lines: Iterable[str], n_words: int, used: Iterable[str]) -> None:
    """The first lines say what the words mean that stand in the others."""
    every = list(lines)
    said, rest = " ".join(every[:n_words]), "\n".join(every[n_words:])
    for word in used:
        assert re.search(rf"\b{word}\b", rest), f"{word!r} is not used"
        assert re.search(rf"\b{word}\b", said), f"{word!r} is used, and not explained"


def test_a_comparison_explains_its_words_first(wrong: Comparison) -> None:
    lines = shown(wrong, verbose=False)
    n = len(words.COMPARISON)
    assert tuple(lines[:n]) == words.COMPARISON and len(lines[:n]) <= 6
    used = "yours reference exact error own inherited total allowed".split() + ["remaining error"]
    explained_before_used(lines, n, used)
    assert not GONE.search("\n".join(lines))


def test_a_validation_explains_its_words_first() -> None:
    n = len(words.LADDER)
    assert terminal.header()[:n] == words.LADDER and n <= 7
    for word in ("error", "yours", "reference's", "exact", "own", "total", "allowed", "recording", "points"):
        assert re.search(rf"\b{word}", " ".join(words.LADDER)), word


@pytest.mark.parametrize("line", [*words.LADDER, *words.COMPARISON])
def test_what_explains_fits_a_terminal(line: str) -> None:
    assert len(line) <= 80


def test_a_wrong_point_takes_six_lines_and_verbose_shows_the_rest(wrong: Comparison) -> None:
    brief, full = shown(wrong, verbose=False), shown(wrong, verbose=True)
    labels = "first wrong,error,who is off,looks like,would pass,total error,own,reason,largest".split(",")

    def told(lines: list[str]) -> list[str]:
        return [line[:15].strip() for line in lines[lines.index("") :] if line[:15].strip() in labels]

    assert told(brief) == ["own", "first wrong", "error", "who is off", "looks like"]
    assert set(labels) <= set(told(full))
    assert sum(line.startswith("next ") for line in brief) == 1
    strip = brief[brief.index("", len(words.COMPARISON) + 1) :]
    assert all(len(line) <= 80 for line in strip[: strip.index("", 1)])


def test_an_error_that_cannot_be_measured_gives_its_reason(wrong: Comparison) -> None:
    first = wrong.first_wrong
    assert first is not None and first.own is not None
    lost = replace(first.own, err=float("nan"), reason="wrong shape: got [2], wanted [2, 4]")
    points = [replace(first, own=lost) if one is first else one for one in wrong.points]
    lines = shown(replace(wrong, points=points), verbose=False)
    assert "error          own wrong shape: got [2], wanted [2, 4]" in lines


def test_the_page_explains_its_words_in_its_head(wrong: Comparison) -> None:
    head = page(wrong.to_json()).partition("</header>")[0]
    for word in words.WORDS:
        assert f"<dt>{word}</dt>" in head


@pytest.mark.parametrize("kind", ["comparison", "ladder"])
def test_no_word_that_went_is_on_a_page(kind: str, wrong: Comparison) -> None:
    if kind == "comparison":
        record = wrong.to_json()
    else:
        folder = reference_dumps.dump_folder("f32")
        record = validate("1", implementation=_unscaled, dumps=folder, device="cpu", maps=True).to_json()
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page(record), flags=re.S)
    assert not GONE.findall(text)


def _unscaled(x, weight, *, eps):  # type: ignore[no-untyped-def]
    return x * weight


def test_the_glossary_is_the_table_of_words() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| \*\*([a-z ]+)\*\* \| (.*?) \|$", text, re.M))
    assert rows == words.WORDS
    assert "(docs/glossary.md)" in (ROOT / "README.md").read_text("utf-8")


def test_everybody_who_can_be_off_has_a_word() -> None:
    assert set(words.WHO) == {"yours", "reference", "noise", "tie", "unknown", ""}


def test_the_terms_that_went_are_in_no_page_of_ours() -> None:
    """The schema names them as gone; performance.md and worker.md are about other things."""
    for path in (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("diagnosis", "glossary"))):
        assert not re.findall(r"\b(teacher|free-running|ours|fed from|fed by)\b", path.read_text("utf-8")), (
            path
        )
