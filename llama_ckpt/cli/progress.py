"""Progress on standard error: seen only where a person looks on, and only after a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["ProgressBar", "megabytes", "waiting"]

PATIENCE = 1.0  # seconds; what is done sooner needs no bar


class ProgressBar:
    """A bar for one long job; `with ProgressBar() as bar: bar("blk.3", 4, 32)`.

    Nothing is shown where standard error is no terminal, nor in the first second.
    """

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._bar: Progress | None = None
        self._watched = sys.stderr.isatty()
        self._at = (0, 0)

    def __call__(self, label: str, done: int, total: int) -> None:
        """Say that `done` of `total` (0: nobody knows) is done, and what is being worked on."""
        if not self._watched or time.monotonic() - self._begun < PATIENCE:
            return
        if self._bar is None:
            self._bar = _new_bar()
            self._task = self._bar.add_task(label, total=None)
            self._bar.start()
        before, self._at = self._at, (done, total)
        if total != before[1] or done < before[0]:  # another job, of whose speed nothing is known yet
            self._bar.reset(self._task, completed=done, total=total or None)
        self._bar.update(self._task, description=label, completed=done, total=total or None)

    def clear(self) -> None:
        """Take the bar off the screen, so that lines can be printed; the next call brings it back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()


def megabytes(bar: ProgressBar) -> Callable[[int, int], None]:
    """What `load` calls with bytes, as a bar of megabytes."""
    return lambda done, total: bar("loading the model, MB", done // 10**6, total // 10**6)


def _new_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rest = (TextColumn("still"), TimeRemainingColumn())
    return Progress(*columns, *rest, console=Console(stderr=True), transient=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Turn a spinner while something of unknown length goes on, where a person looks on."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(what):
        yield
