"""The page of what was tried: docs/fuzzing.md, from the counts in docs/fuzzing.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.fuzz.hunt import KINDS
from tools.fuzz.targets import TARGETS

__all__ = ["page", "write_page"]

PAGE = Path(__file__).parents[2] / "docs" / "fuzzing.md"

HEAD = """<!-- Made by `python -m tools.fuzz --count`; edit tools/fuzz/page.py instead. -->

# Hostile input

`make fuzz SECONDS=600` damages sound files, a field, a value or some bytes at a time, and reads what comes of
it as the commands do. Each is read, or refused in one line of fewer than 500 printable characters, within
five seconds of the processor's time (a dump that is compared and explained: sixty), in four times its size
and 200 MB beyond what the program has after its imports. What shows a new line of the program, or a new
refusal, is kept and damaged further. What broke a rule once is a file in `tools/fuzz/corpus`, and a test
reads it on every run. With `FUZZ_ARGS=--atheris`, after `pip install -r requirements/atheris.txt`, libFuzzer
chooses what is damaged further, by the branches that it reached.

The table is of `make fuzz SECONDS=520 FUZZ_ARGS="--goals --jobs 14 --count"`, whose goals are what "tried"
says; of dumps that are compared only those count that were read and compared to the end. A header is sound
where it is read and says what a Llama needs: what is damaged there lies behind it.

| what | tried | header sound | read | refused | broke a rule | seconds |
|---|---|---|---|---|---|---|
"""


def page(counts: Mapping[str, Any]) -> str:
    """The page's text."""
    rows = []
    for name, one in counts.items():
        if name not in TARGETS:
            continue
        of = one["counts"]
        tried, header = sum(of.get(kind, 0) for kind in KINDS), of.get("header")
        cells = [f"{tried:,}", "" if header is None else f"{header:,}"]
        cells += [*(f"{of.get(kind, 0):,}" for kind in KINDS), f"{one['seconds']:,.0f}"]
        rows.append(f"| {TARGETS[name].what} | {' | '.join(cells)} |")
    return HEAD + "\n".join(rows) + "\n"


def write_page(counts: Mapping[str, Any]) -> None:
    """Write it."""
    PAGE.write_text(page(counts), "utf-8", newline="\n")
