"""What the worker counts, in Prometheus' format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE", "Telemetry", "resident_bytes"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `Telemetry.text` gives."""

PREFIX = "llama_ckpt_worker_"
FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Telemetry:
    """The counters of one worker, in a registry of their own.

    Attributes:
        requests: answered HTTP requests, by path and status.
        jobs: ended jobs, by how they ended.
        refused: requests that found the queue full.
        prompt_tokens, generated_tokens: tokens.
        queue_wait, first_token, between_tokens: seconds.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            PREFIX + "requests_total", "HTTP requests answered.", ["path", "status"], registry=registry
        )
        self.jobs = Counter(
            PREFIX + "jobs_total", "Jobs by their terminal event.", ["outcome"], registry=registry
        )
        self.refused = self._counter("jobs_refused_total", "Jobs refused because the queue was full.")
        self.prompt_tokens = self._counter("prompt_tokens_total", "Tokens of the prompts of started jobs.")
        self.generated_tokens = self._counter("generated_tokens_total", "Tokens generated.")
        self.queue_wait = self._seconds("queue_wait_seconds", "From a request to its start.", FIRST_TOKEN)
        self.first_token = self._seconds(
            "first_token_seconds", "From a request to its first token.", FIRST_TOKEN
        )
        self.between_tokens = self._seconds("between_tokens_seconds", "Between two tokens.", BETWEEN_TOKENS)

    def watch(self, name: str, help: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(PREFIX + name, help, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(PREFIX + name, help, registry=self._registry)

    def _seconds(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, help, buckets=buckets, registry=self._registry)


def resident_bytes(pid: int | None) -> float:
    """The memory in which a process resides; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
