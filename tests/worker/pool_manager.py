"""Pool managers of several kinds, each a real HTTP server on the loopback interface."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class PoolManager(ThreadingHTTPServer):
    """Answers each call with the next of some statuses, the last one from then on.

    Attributes:
        calls: the bodies that came.
        released: until it is set, a call whose status is 0 gets no answer.
    """

    daemon_threads = True

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.statuses, self.calls = list(statuses), list[dict[str, Any]]()
        self.url = f"http://127.0.0.1:{self.server_port}/ready"
        self.released = threading.Event()


class Answering(BaseHTTPRequestHandler):
    """One call."""

    server: PoolManager

    def do_POST(self) -> None:
        self.server.calls.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        assert self.headers["Content-Type"] == "application/json"
        statuses = self.server.statuses
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if status == 0:
            self.server.released.wait(30)
            return
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", self.server.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the tests' standard error."""


@contextmanager
def pool_manager(*statuses: int) -> Iterator[PoolManager]:
    """One that runs for the length of a block."""
    with PoolManager(*statuses) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
