"""JSON log lines on standard error, written by a thread of their own.

A pool manager that starts a worker with a pipe on standard error and never reads it would otherwise
stop the event loop as soon as the pipe is full. Here a full pipe costs lines, which are counted, and
nothing else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

__all__ = ["JsonLines", "correlation_id", "log", "now_iso", "start_logging"]

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
"""The correlation id of the request that is being answered."""

FAULTS_OF_CLIENTS = ("ClientDisconnect", "RemoteProtocolError", "LocalProtocolError", "SSLError")
"""What libraries raise where a client breaks its own framing, or goes away in the middle of it."""

_KEPT = 10_000  # lines that may wait for a slow reader
_LONGEST = 500  # characters of a string in a log line
_logger = logging.getLogger("llama_ckpt.worker")


def now_iso() -> str:
    """The time, in ISO 8601 and UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def log(level: str, message: str, **fields: object) -> None:
    """Write a line: `log("info", "model loaded", seconds=2.1)`. Never waits."""
    _logger.log(getattr(logging, level.upper()), message, extra={"fields": fields})


class JsonLines(logging.Handler):
    """Turns records into JSON lines and hands them to a thread that writes them.

    Args:
        descriptor: where to; a file's number, so that nothing in between can be locked or fill up.
        fields: what every line has besides its time, level and message; may grow later.
    """

    def __init__(self, descriptor: int, fields: Mapping[str, object]) -> None:
        super().__init__()
        self.fields: dict[str, object] = dict(fields)
        self._descriptor, self._dropped = descriptor, 0
        self._lines: queue.Queue[str] = queue.Queue(_KEPT)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def filter(self, record: logging.LogRecord) -> bool:
        """What a client did to its own connection is no error of ours, and needs no trace."""
        kind = record.exc_info[0] if record.exc_info else None
        if kind is not None and kind.__name__ in FAULTS_OF_CLIENTS:
            record.exc_info, record.levelno, record.levelname = None, logging.INFO, "INFO"
            record.msg, record.args = f"a client's connection broke off: {kind.__name__}", ()
        return super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line; drop it, and count that, when the reader is too far behind."""
        try:
            self._lines.put_nowait(self.line(record))
        except queue.Full:
            self._dropped += 1

    def line(self, record: logging.LogRecord) -> str:
        """The record in JSON: time, level, message, the common fields, its own."""
        entry: dict[str, Any] = {"timestamp": now_iso(), "level": record.levelname.lower()}
        entry |= {"message": record.getMessage(), **self.fields}
        if (current := correlation_id.get()) is not None:
            entry["correlation_id"] = current
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["trace"] = logging.Formatter().formatException(record.exc_info)
        if self._dropped:
            entry["lines_dropped"], self._dropped = self._dropped, 0
        return json.dumps({key: _shortened(key, value) for key, value in entry.items()}, default=str)

    def flush_within(self, seconds: float) -> None:
        """Wait until everything is written, but not for ever: the reader may have gone."""
        done = threading.Thread(target=self._lines.join, daemon=True)
        done.start()
        done.join(seconds)

    def _write(self) -> None:
        while True:
            data = (self._lines.get() + "\n").encode()
            with contextlib.suppress(OSError):  # nobody reads any more; that must not end the worker
                while data:
                    data = data[os.write(self._descriptor, data) :]
            self._lines.task_done()


def start_logging(**fields: object) -> JsonLines:
    """Send every log record of this process to standard error as JSON; `fields` go into each."""
    handler = JsonLines(2, fields)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for chatty in ("uvicorn", "uvicorn.error", "httpx", "httpcore", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return handler


def _shortened(key: str, value: object) -> object:
    if isinstance(value, str) and len(value) > _LONGEST and key != "trace":
        return value[:_LONGEST] + "…"
    return value
