"""A job's events on their way to its client, and what happens when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama_ckpt.worker.events import Event
from llama_ckpt.worker.job_queue import JobQueue
from llama_ckpt.worker.jobs import Job

__all__ = ["EventStream", "watched"]

HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the events otherwise
}
GONE = "client"


@asynccontextmanager
async def watched(queue: JobQueue, job: Job, receive: Receive) -> AsyncIterator[None]:
    """Within it, the job is cancelled as soon as its client closes the connection, or half of it."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        queue.drop(job, GONE)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        queue.drop(job, GONE)  # whatever ended this early; nothing happens to a job that has ended


class EventStream(Response):
    """Sends each event when it happens.

    Args:
        queue, job: whose events.
        render: an event as bytes of the stream; nothing for one that this client does not get.
        last: what ends the stream.
    """

    def __init__(
        self, queue: JobQueue, job: Job, render: Callable[[Event], Iterable[bytes]], last: bytes = b""
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._queue, self._job, self._render, self._last = queue, job, render, last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the headers now, then events until the terminal one."""
        async with watched(self._queue, self._job, receive):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            async for event in self._job.events():
                for chunk in self._render(event):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": self._last})
