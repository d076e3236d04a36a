"""Other people's programs: drivers can be listed, environments are pinned, the page tells the truth."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llama_ckpt.precisions import DTYPES
from tools.other_llamas.__main__ import PAGE, judged_wrongly
from tools.other_llamas.catalogue import CHEAPEST, keys, program
from tools.other_llamas.environments import REQUIREMENTS
from tools.other_llamas.judge import Errors, Judged
from tools.other_llamas.page import page
from tools.other_llamas.results import Kept, everything

SHARED = ("torch", "numpy", "llama_ckpt")
"""What no environment may bring along: torch because of its size, the others because they are on trial."""


@pytest.mark.parametrize("key", keys())
def test_every_driver_says_what_it_drives(key: str) -> None:
    one = program(key)
    assert one.title and one.dtypes and set(one.dtypes) <= set(DTYPES)
    assert bool(one.deviates) == bool(one.at)
    assert "cpu" in one.devices
    assert not one.environment or (REQUIREMENTS / f"{one.environment}.txt").is_file()


def test_every_environment_is_used_and_pinned() -> None:
    used = {program(key).environment for key in keys()} | {"smollm2"}
    files = sorted(REQUIREMENTS.glob("*.txt"))
    assert {path.stem for path in files} == used - {""}
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not re.fullmatch(r"#.*|--no-binary=[\w.-]+", line):
                assert re.fullmatch(r"[\w.-]+==[\w.+!]+", line), f"{path.name}: {line} is not pinned"
                assert line.partition("==")[0].lower() not in SHARED, f"{path.name}: {line}"


def test_continuous_integration_runs_two_that_must_pass() -> None:
    assert len(CHEAPEST) == 2
    assert not any(program(key).deviates for key in CHEAPEST)


def found(key: str, passed: bool, first: str = "blk.3.q_rope") -> Judged:
    """One run of a program, judged."""
    points = {
        "q_rope": Errors(own=1e-7, share=0.25, metric="err", total=2e-7),
        "logits": Errors(total=1.5e-7),
    }
    said = "every point is right" if passed else f"{first}: theta is 10,000"
    where = "" if passed else first
    return Judged(key, "embedded", "float32", 20, passed, said, where, 547, 1.5e-7, points)


def test_the_page_counts_a_condemned_program_and_says_why() -> None:
    text = page(
        [found("transformers_eager", True), found("transformers_sdpa", False)], everything("cpu"), "abc"
    )
    assert "**1 of 2 runs of right programs are condemned**, 1,094 points judged" in text
    assert "| 20 | blk.3.q_rope: theta is 10,000 |" in text
    assert "| 0.25 of err at q_rope | 1.5e-07 |" in text and "1.5e-07" in text
    assert "| q_rope | 1.0e-07 | 1.0e-07 |" in text


def test_what_a_condemned_run_needs_is_not_what_right_ones_need() -> None:
    text = page([found("transformers_eager", False)], [], "abc")
    assert "0.25 of err" not in text and "as of commit abc" in text


def test_the_page_says_what_was_not_run() -> None:
    one, other = found("transformers_eager", True).run, found("transformers_sdpa", True).run
    text = page([found("transformers_eager", True)], [one, other, other._replace(length=600)], "abc")
    title = program(other.key).title
    assert text.rstrip().endswith(f"| {title} | embedded | float32 | 20, 600 |")


def test_runs_on_a_gpu_have_rows_of_their_own() -> None:
    here = found("transformers_eager", True)
    there = replace(here, device="cuda", logits=2.5e-7)
    text, title = page([there, here], [], "abc"), program(here.key).title
    rows = [line for line in text.splitlines() if line.startswith(f"| {title}")]
    assert rows[0].endswith("| 1.5e-07 |") and rows[1].startswith(f"| {title} on CUDA")
    assert rows[1].endswith("| 2.5e-07 |") and "float32 on CUDA" in text


def test_results_are_kept_by_what_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.other_llamas.results.OTHERS", tmp_path)
    result = found("transformers_eager", True)
    Kept("one").add(result)
    assert result.run in Kept("one") and [one.run for one in Kept("one").all("cpu")] == [result.run]
    assert result.run not in Kept("other") and not list(Kept("other").all("cpu"))


@pytest.mark.parametrize("key", keys())
def test_the_page_tells_of_every_program(key: str) -> None:
    """Of those too that were not run."""
    text = PAGE.read_text(encoding="utf-8")
    assert f"| {program(key).title} |" in text or f"| {program(key).title} on CUDA |" in text
    assert re.search(r"as of commit [0-9a-f]{10}\.", text)


def test_a_condemned_right_program_counts_as_judged_wrongly() -> None:
    assert judged_wrongly(found("transformers_eager", False))
    assert not judged_wrongly(found("transformers_eager", True))


def test_a_deviating_program_must_be_condemned_where_it_deviates() -> None:
    deviating = next(key for key in keys() if program(key).deviates)
    assert not judged_wrongly(found(deviating, False, f"blk.0.{program(deviating).at[0]}"))
    assert judged_wrongly(found(deviating, False, "blk.0.ffn_out"))
    assert judged_wrongly(found(deviating, True))
