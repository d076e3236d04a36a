"""The bar says how long is left, of the job that is going on and not of the one before."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from llama_ckpt.cli import progress
from llama_ckpt.cli.progress import ProgressBar


def test_what_is_left_is_known_after_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    shown = Progress(
        *progress._new_bar().columns,
        console=Console(file=io.StringIO(), force_terminal=True),
        get_time=lambda: clock[0],
        auto_refresh=False,
    )
    monkeypatch.setattr(progress, "_new_bar", lambda: shown)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressBar() as bar:
        bar("loading", 0, 0)
        assert shown.tasks[0].time_remaining is None
        for total, seconds in ((32, 3.0), (22, 0.5), (22, 2.0)):
            for done in range(4):
                bar(f"job of {total}", done, total)
                clock[0] += seconds
            bar(f"job of {total}", 4, total)
            left = shown.tasks[0].time_remaining
            assert left == pytest.approx((total - 4) * seconds, rel=0.1)
        shown.refresh()
        assert "still" in shown.console.file.getvalue()  # type: ignore[attr-defined]
