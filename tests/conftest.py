"""What all tests share: who needs what, where the embedded model is, and how hypothesis runs."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

import reference_dumps

# The tensors of the tests are small: threads would only wait for each other, and for other test workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: the first example of many tests imports torch. Derandomized in CI, where a failure has
# to mean that the change is at fault; elsewhere every run tries new examples.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_llama_cpp() -> bool:
    # Found, not imported: a package that is there and broken has to fail its tests.
    return importlib.util.find_spec("llama_cpp") is not None


NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "cuda": (_has_cuda, "needs a CUDA device"),
    "llama_cpp": (_has_llama_cpp, "needs llama-cpp-python: make reference"),
}
"""Marker to what it needs, and what a skipped test says."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests whose marker asks for what this machine lacks."""
    for marker, (is_there, reason) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not is_there():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped for each reason, a line a reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """Path of the embedded model."""
    return reference_dumps.embedded_model()
