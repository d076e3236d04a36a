"""Which lines of ours a mutant is the first to reach: what guides the harness."""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Any, Final

__all__ = ["NewLines"]

OURS: Final = "/llama_ckpt/"

WATCHED: Final = 16
"""Without `sys.monitoring` (Python 3.11) one in so many mutants is traced, at ten times the time."""


class NewLines:
    """Collects lines of ours that nobody reached before.

    Python 3.12 tells of each line once and then is as fast as without; before that some mutants are traced.
    """

    def __init__(self) -> None:
        self._new: set[tuple[str, int]] = set()
        self._seen: set[tuple[str, int]] = set()
        self._n = 0
        if sys.version_info >= (3, 12):
            monitoring, tool = sys.monitoring, sys.monitoring.COVERAGE_ID
            monitoring.use_tool_id(tool, "fuzz")
            monitoring.register_callback(tool, monitoring.events.LINE, self._of_code)
            monitoring.set_events(tool, monitoring.events.LINE)

    def begin(self) -> None:
        """A mutant is about to be read."""
        self._n += 1
        if sys.version_info < (3, 12) and self._n % WATCHED == 1:
            sys.settrace(self._of_call)

    def taken(self) -> bool:
        """Whether a line was reached for the first time since the last call."""
        if sys.version_info < (3, 12):
            sys.settrace(None)
        fresh = not self._new <= self._seen
        self._seen |= self._new
        self._new.clear()
        return fresh

    def close(self) -> None:
        """Watch no more."""
        if sys.version_info >= (3, 12):
            sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, 0)
            sys.monitoring.free_tool_id(sys.monitoring.COVERAGE_ID)

    def _of_code(self, code: CodeType, line: int) -> Any:
        if OURS in code.co_filename:
            self._new.add((code.co_filename, line))
        return sys.monitoring.DISABLE

    def _of_call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        return self._of_line if OURS in frame.f_code.co_filename else None

    def _of_line(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            self._new.add((frame.f_code.co_filename, frame.f_lineno))
        return self._of_line
