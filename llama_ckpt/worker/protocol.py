"""The worker's own protocol: /health, /execute, /cancel, /metrics."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llama_ckpt.worker.events import Event, compact, sse
from llama_ckpt.worker.guard import owner_of
from llama_ckpt.worker.model_link import Part
from llama_ckpt.worker.replies import Fault, body_of, problem
from llama_ckpt.worker.requests import CancelRequest, ExecuteRequest
from llama_ckpt.worker.service import Service
from llama_ckpt.worker.streaming import EventStream
from llama_ckpt.worker.telemetry import CONTENT_TYPE

__all__ = ["Protocol"]


class Protocol:
    """The handlers of one worker."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Paths and methods."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/execute", self.execute, methods=["POST"]),
            Route("/cancel", self.cancel, methods=["POST"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    async def health(self, _request: Request) -> Response:
        """Whether the worker can take a job."""
        status, body = self._service.health()
        return JSONResponse(body, status)

    async def execute(self, request: Request) -> Response:
        """Run a job and stream what happens to it."""
        within = self._service.options.client_timeout
        wanted = await body_of(request, ExecuteRequest, within=within)
        parts, owner = [Part(wanted.prompt)], owner_of(request)
        job = await self._service.submit(wanted.job_id, parts, wanted, wanted.max_tokens, owner)
        return EventStream(self._service.queue, job, rendered)

    async def cancel(self, request: Request) -> Response:
        """End a job with CANCELLED, at its next token."""
        wanted = await body_of(request, CancelRequest, within=self._service.options.client_timeout)
        owner = owner_of(request)
        if self._service.model and self._service.queue.cancel(wanted.job_id, "request", owner):
            return JSONResponse({"job_id": wanted.job_id, "status": "cancelling"}, 202)
        return problem(request, 404, [Fault("job_id", "unknown", "no job with this id waits or runs")])

    async def metrics(self, _request: Request) -> Response:
        """The counters, for Prometheus."""
        return Response(self._service.telemetry.text(), headers={"content-type": CONTENT_TYPE})


def rendered(event: Event) -> Iterator[bytes]:
    """An event as the protocol writes it."""
    yield sse(compact(event.payload()), event.type)
