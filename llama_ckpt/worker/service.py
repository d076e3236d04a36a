"""One worker: its model, its queue, its state; and how a request becomes a job.

loading → ready → stopping          ready → faulted, when the model's process ends unasked, or is stuck
                                    ready → loading instead, where it is to be started again
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llama_ckpt.errors import LlamaCkptError, TokenizerError
from llama_ckpt.worker.job_queue import JobQueue
from llama_ckpt.worker.jobs import Job
from llama_ckpt.worker.logs import correlation_id, log
from llama_ckpt.worker.model_link import Encoded, LoadedModel, ModelLink, ModelLostError, Part
from llama_ckpt.worker.options import WorkerOptions
from llama_ckpt.worker.replies import BadRequestError, Fault, UnavailableError
from llama_ckpt.worker.requests import MAX_TOKENS, ChatRequest, ExecuteRequest, OpenAIRequest
from llama_ckpt.worker.telemetry import Telemetry, resident_bytes
from llama_ckpt.worker.watchdog import Watchdog

__all__ = ["Service", "State"]

State = Literal["loading", "ready", "faulted", "stopping"]

RESTARTS, RESTARTS_WITHIN = 5, 600.0
"""So many restarts in so many seconds; one more, and the worker stays faulted."""

WHY = {
    "loading": "the model is being loaded",
    "faulted": "the model's process has ended; the worker has to be started again",
    "stopping": "the worker is stopping",
}


class Service:
    """What the worker is, without HTTP.

    Attributes:
        options: what it was started with.
        telemetry: its counters.
        link: the model's process.
        state: see the module.
        model: what was loaded; None before.
        vram_bytes: the model's memory, as its process told it last.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.options, self.telemetry = options, Telemetry()
        self.link = ModelLink(self._on_message, self._on_lost)
        self.state: State = "loading"
        self.model: LoadedModel | None = None
        self.vram_bytes = 0
        self._queue: JobQueue | None = None
        self._numbers = itertools.count(1)
        self._watching: asyncio.Task[None] | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._restarts: list[float] = []
        self._watch_gauges()

    @property
    def queue(self) -> JobQueue:
        """The jobs; there are none before the model is loaded."""
        assert self._queue is not None
        return self._queue

    @property
    def loaded(self) -> LoadedModel:
        """The model; to be asked for only when there is one."""
        assert self.model is not None
        return self.model

    async def load(self) -> LoadedModel:
        """Load the model; requests are accepted from now on.

        Raises:
            RefusedError: it can't be loaded.
        """
        self.model = await self.link.load(self.options)
        self.vram_bytes = self.model.vram_bytes
        self._queue = JobQueue(
            self.link,
            model=self.model.name,
            size=self.options.queue_size,
            timeout=self.options.job_timeout,
            waiting=self.options.queue_timeout,
            telemetry=self.telemetry,
        )
        self._watch_the_process()
        if self.state == "loading":
            self.state = "ready"
        return self.model

    def health(self) -> tuple[int, dict[str, object]]:
        """The status and the body of `/health`."""
        ready, model = self.state == "ready", self.model
        body: dict[str, object] = {"status": "healthy" if ready else self.state}
        body |= {"model_loaded": model is not None and self.state != "faulted"}
        body |= {"vram_bytes": self.vram_bytes}
        body |= {"memory_type": model.memory_type if model else "cpu"}
        return 200 if ready else 503, body

    async def submit(
        self,
        job_id: str,
        parts: Sequence[Part],
        request: ExecuteRequest | OpenAIRequest,
        max_tokens: int | None,
        owner: int | None = None,
    ) -> Job:
        """Queue a job.

        Args:
            job_id: the caller's name for it, or one made for it.
            parts: the prompt.
            request: how to generate.
            max_tokens: None for as many as the context and the protocol allow.
            owner: the number of the key that it came with.

        Raises:
            BadRequestError: there is such a job already, or the prompt can't be run.
            UnavailableError: the queue is full, or the worker not ready.
        """
        self._check_ready()
        self._check_room(job_id)
        sampling = request.sampling(secrets.randbits(32), self.loaded.vocab_size)
        stop = tuple(request.stop or ())
        current = correlation_id.get()
        job = Job(next(self._numbers), job_id, current, max_tokens or 0, sampling, stop, owner=owner)
        self.queue.admit(job)
        field = "messages" if isinstance(request, ChatRequest) else "prompt"
        try:
            encoded = await self._encode(parts, field)
            job.max_tokens = self._tokens_to_make(encoded, max_tokens, field)
        except BaseException:
            self.queue.withdraw(job)
            raise
        job.token_ids = encoded.token_ids
        self.queue.enqueue(job)
        return job

    def _check_ready(self) -> None:
        if self.state != "ready":
            retry = 1 if self.state == "loading" else None
            raise UnavailableError(self.state, WHY[self.state], retry)

    def _check_room(self, job_id: str) -> None:
        if job_id in self.queue:
            fault = Fault("job_id", "unique", "a job with this id is waiting or running")
            raise BadRequestError([fault])
        if self.queue.is_full:
            self.telemetry.refused.inc()
            message = f"the queue is full: {self.options.queue_size} jobs wait"
            raise UnavailableError("queue", message, self.queue.retry_after)

    async def _encode(self, parts: Sequence[Part], field: str) -> Encoded:
        try:
            async with asyncio.timeout(self.options.queue_timeout):
                return await self.link.encode(parts)
        except TimeoutError:
            raise UnavailableError("queue", "the prompt was not tokenized in time", 1) from None
        except TokenizerError as error:
            raise BadRequestError([Fault(field, "vocabulary", str(error))]) from None
        except ModelLostError:
            raise UnavailableError("faulted", WHY["faulted"]) from None

    def _tokens_to_make(self, encoded: Encoded, asked: int | None, field: str) -> int:
        room = self.loaded.max_context - encoded.count
        wanted = asked or max(1, min(MAX_TOKENS, room))
        if encoded.count == 0:
            raise BadRequestError([Fault(field, "min_tokens", "the prompt has no tokens")])
        if wanted > room:
            message = f"prompt and max_tokens have {encoded.count} + {wanted} tokens, "
            message += f"the context holds {self.loaded.max_context}"
            raise BadRequestError([Fault(field, "context", message)])
        return wanted

    def _on_message(self, message: Mapping[str, Any]) -> None:
        if message["is"] == "metrics":
            self.vram_bytes = message["vram_bytes"]
        self.queue.on_message(message)

    def _on_lost(self, reason: str) -> None:
        log("error", reason)
        again = self.options.restart and self.state == "ready" and self._may_restart()
        if self.state != "stopping":
            self.state = "loading" if again else "faulted"
        self.queue.abandon("INFERENCE_FAILED", reason)
        if again:
            self._restarting = asyncio.create_task(self._restart())

    def _may_restart(self) -> bool:
        """Not more than a few times in a while: a model that always fails would be loaded for ever."""
        now = time.monotonic()
        self._restarts = [one for one in self._restarts if now - one < RESTARTS_WITHIN] + [now]
        return len(self._restarts) <= RESTARTS

    async def _restart(self) -> None:
        """Load the model anew, in a process of its own."""
        log("warning", "the model is loaded again", restarts=len(self._restarts))
        await self.link.stop()
        if self.state != "loading":
            return
        self.link = ModelLink(self._on_message, self._on_lost)
        try:
            await self.load()
        except LlamaCkptError as error:
            log("error", str(error))
            if self.state == "loading":
                self.state = "faulted"
        else:
            log("info", "ready")

    def _watch_the_process(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        link = self.link

        def stuck(why: str) -> None:
            log("error", f"{why}; it is killed")
            if self.state == "ready" and not self.options.restart:
                self.state = "faulted"
            link.kill()

        dog = Watchdog(
            lambda: link.heard, lambda: link.worked, lambda: self.queue.unobeyed, stuck, self.options.watchdog
        )
        self._watching = asyncio.create_task(dog.run())

    async def stop(self) -> None:
        """End the model's process, and what looks after it."""
        for task in (self._watching, self._restarting):
            if task is not None:
                task.cancel()
        await self.link.stop()

    def _watch_gauges(self) -> None:
        watch = self.telemetry.watch
        watch("queue_length", "Jobs that wait.", lambda: len(self._queue) if self._queue else 0)
        watch("running", "Jobs that run.", lambda: self._queue.n_running if self._queue else 0)
        watch("vram_bytes", "The model's memory, as /health has it.", lambda: self.vram_bytes)
        watch("resident_bytes", "Memory of both processes.", self.resident_bytes)

    def resident_bytes(self) -> float:
        """The memory in which the worker and the model's process reside; 0 where that is unknown."""
        return resident_bytes(os.getpid()) + (resident_bytes(self.link.pid) if self.link.pid else 0.0)
