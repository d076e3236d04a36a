"""The queue that jobs wait in, and the one that runs.

First come, first served; one generation at a time. A job gets exactly one terminal event, `end` or
`error`, whatever happens to it, to its client or to the model's process, and the log has it too.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llama_ckpt.worker.events import End, Error, ErrorCode, Metrics, Started, StopReason
from llama_ckpt.worker.jobs import Job
from llama_ckpt.worker.logs import log, now_iso
from llama_ckpt.worker.telemetry import Telemetry

__all__ = ["Generator", "JobQueue"]

STOP_REASONS: dict[str, StopReason] = {
    "length": "MAX_TOKENS", "eos": "EOS", "stop": "STOP_SEQUENCE", "cancelled": "CANCELLED",
}  # fmt: skip


class Generator(Protocol):
    """What runs a generation: the model's process."""

    def generate(
        self,
        job: int,
        token_ids: Sequence[int],
        *,
        max_tokens: int,
        sampling: Mapping[str, float | int | None],
        stop: Sequence[str],
    ) -> None:
        """Begin a generation."""

    def cancel(self, job: int) -> None:
        """Stop it before its next token."""


class JobQueue:
    """Who is next, and what becomes of each.

    Args:
        generator: runs the generations.
        model: the model's name, for `started`.
        size: jobs that may wait besides the one that runs.
        timeout: seconds that a job may run. waiting: seconds that it may wait for its turn.
        telemetry: counts.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        model: str,
        size: int,
        timeout: float,
        telemetry: Telemetry,
        waiting: float = math.inf,
    ) -> None:
        self._generator, self._model, self._size, self._timeout = generator, model, size, timeout
        self._telemetry, self._patience = telemetry, waiting
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._running: Job | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._usual = 1.0  # seconds that a job takes, smoothed
        self._closed: tuple[ErrorCode | None, str] | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        """Jobs that wait, those included whose prompt is being tokenized."""
        running = self._running
        return len(self._jobs) - (running is not None and self._jobs.get(running.job_id) is running)

    @property
    def n_running(self) -> int:
        """1 while the model generates, else 0."""
        return int(self._running is not None)

    @property
    def is_full(self) -> bool:
        """Whether another job would be one too many."""
        return len(self._jobs) > self._size or (self._running is not None and len(self) >= self._size)

    @property
    def retry_after(self) -> int:
        """Seconds after which there may be room: as long as a job usually takes."""
        return min(300, max(1, math.ceil(self._usual)))

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def admit(self, job: Job) -> None:
        """Give a job a place before its prompt is tokenized; `enqueue` or `withdraw` comes next."""
        self._jobs[job.job_id] = job
        self._empty.clear()

    def withdraw(self, job: Job) -> None:
        """Take back the place of a job that turned out to be impossible."""
        self._forget(job)

    def enqueue(self, job: Job) -> None:
        """Put an admitted job into the queue; it starts at once if nothing runs."""
        if self._closed:
            self._close(job)
        elif job.cancelled_by:
            self._end(job, "CANCELLED")
        else:
            self._waiting.append(job)
            self._advance()
            job.times["queued"] = time.monotonic()
            self._look_again()

    def cancel(self, job_id: str, by: str, owner: int | None = None) -> bool:
        """End a job with CANCELLED: a waiting one now, a running one before its next token.

        Returns:
            whether there is such a job; one that has ended is none, nor is one of another `owner`.
        """
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            return False
        self.drop(job, by)
        return True

    def drop(self, job: Job, by: str) -> None:
        """Cancel this very job; nothing happens to one that has ended or is being cancelled."""
        if job.terminal is not None or job.cancelled_by is not None:
            return
        job.cancelled_by = by
        if job is self._running:
            self._generator.cancel(job.number)
        elif job in self._waiting:
            self._waiting.remove(job)
            self._end(job, "CANCELLED")

    @property
    def unobeyed(self) -> bool:
        """Whether the job that runs was cancelled, or its time is up, and the model has not let go of it."""
        job = self._running
        return job is not None and (job.cancelled_by is not None or job.terminal is not None)

    def _look_again(self) -> None:
        """Wake up when the job that waits longest has waited for its limit: one timer, which holds no job."""
        if self._timer is None and self._waiting and math.isfinite(self._patience):
            left = self._waiting[0].times["queued"] + self._patience - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(left, 0.0), self._wait_no_longer)

    def _wait_no_longer(self) -> None:
        self._timer = None
        while self._waiting and self._waiting[0].times["queued"] + self._patience <= time.monotonic():
            job = self._waiting.popleft()
            self._finish(job, Error("TIMEOUT", f"the job waited for its limit of {self._patience:g} seconds"))
        self._look_again()

    def cancel_all(self, by: str) -> None:
        """Cancel every job."""
        for job in list(self._jobs.values()):
            self.drop(job, by)

    async def until_empty(self) -> None:
        """Wait until no job is left."""
        await self._empty.wait()

    def abandon(self, code: ErrorCode | None, message: str) -> None:
        """Give every job its terminal event now: the model answers no more, or there is no more time.

        Args:
            code: of the error; None ends the jobs with CANCELLED.
            message: of the error.
        """
        self._closed = code, message
        self._stop_clock()
        ending = [self._running] if self._running and self._running.terminal is None else []
        ending += self._waiting
        self._waiting.clear()
        self._running = None
        for job in ending:
            self._close(job)

    def _close(self, job: Job) -> None:
        assert self._closed is not None
        code, message = self._closed
        if code is None:
            self._end(job, "CANCELLED")
        else:
            self._finish(job, Error(code, message))

    def on_message(self, message: Mapping[str, Any]) -> None:
        """Take a message of the model's process about the running generation."""
        job = self._running
        if job is None or message["id"] != job.number:
            return
        if job.terminal is None:
            self._tell(job, message)
        if message["is"] in ("done", "failed"):
            self._stop_clock()
            self._running = None
            self._advance()

    def _tell(self, job: Job, message: Mapping[str, Any]) -> None:
        match message["is"]:
            case "token":
                self._count_token(job)
                job.show(message["text"])
            case "metrics":
                rate = job.tokens_out / max(job.running_for(), 1e-9)
                job.tell(Metrics(round(rate, 3), message["vram_bytes"]))
            case "done":
                for _ in range(message["tokens"] - job.tokens_out):
                    self._count_token(job)
                self._end(job, STOP_REASONS[message["reason"]], message["stop_string"])
            case "failed":
                if message.get("trace"):
                    log("error", "generation failed", job_id=job.job_id, trace=message["trace"])
                self._finish(job, Error(message["code"], message["message"]))

    def _count_token(self, job: Job) -> None:
        now = time.monotonic()
        if "first" not in job.times:
            job.times["first"] = now
            self._telemetry.first_token.observe(now - job.times["received"])
        else:
            self._telemetry.between_tokens.observe(now - job.times["latest"])
        job.times["latest"] = now
        job.tokens_out += 1
        self._telemetry.generated_tokens.inc()

    def _advance(self) -> None:
        if self._running is not None or not self._waiting:
            return
        job = self._running = self._waiting.popleft()
        job.times["started"] = time.monotonic()
        job.tell(Started(job.job_id, self._model, now_iso()))
        self._telemetry.queue_wait.observe(job.times["started"] - job.times["received"])
        self._telemetry.prompt_tokens.inc(len(job.token_ids))
        self._log("info", "job started", job, prompt_tokens=len(job.token_ids), seed=job.sampling["seed"])
        self._generator.generate(
            job.number, job.token_ids, max_tokens=job.max_tokens, sampling=job.sampling, stop=job.stop
        )
        self._deadline = asyncio.get_running_loop().call_later(self._timeout, self._time_out, job)

    def _time_out(self, job: Job) -> None:
        """The client hears of it now; the model goes on to its next token, and the next job waits for it."""
        self._generator.cancel(job.number)
        self._finish(job, Error("TIMEOUT", f"the job ran for its limit of {self._timeout:g} seconds"))

    def _end(self, job: Job, reason: StopReason, matched: str | None = None) -> None:
        milliseconds = round(job.running_for() * 1000)
        self._finish(job, End(job.tokens_out, milliseconds, reason, matched))

    def _finish(self, job: Job, event: End | Error) -> None:
        outcome = event.stop_reason if isinstance(event, End) else event.code
        job.tell(event)
        self._forget(job)
        if "started" in job.times:
            self._usual += 0.2 * (job.running_for() - self._usual)
        self._telemetry.jobs.labels(outcome).inc()
        found = {"cancelled_by": job.cancelled_by} if job.cancelled_by else {}
        level = "error" if outcome in ("VRAM_OOM", "INFERENCE_FAILED") else "info"
        seconds = round(job.running_for(), 3)
        self._log(
            level, "job ended", job, outcome=outcome, tokens_out=job.tokens_out, seconds=seconds, **found
        )

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.job_id, None)
        if not self._jobs:
            self._empty.set()

    def _stop_clock(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _log(self, level: str, message: str, job: Job, **fields: object) -> None:
        about = {"job_id": job.job_id, "correlation_id": job.correlation_id}
        log(level, message, **about, **fields)
