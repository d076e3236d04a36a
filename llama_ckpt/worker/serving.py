"""The socket, the HTTP server on it, and the application that it serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from llama_ckpt.errors import OptionError
from llama_ckpt.worker.guard import Guard
from llama_ckpt.worker.openai_api import OpenAIApi
from llama_ckpt.worker.openapi import describe
from llama_ckpt.worker.options import WorkerOptions
from llama_ckpt.worker.protocol import Protocol
from llama_ckpt.worker.replies import (
    BadRequestError,
    Envelope,
    UnavailableError,
    gone,
    http_problem,
    internal_problem,
)
from llama_ckpt.worker.service import Service

__all__ = ["HttpServer", "application", "bind", "listen"]

BACKLOG = 2048
HEADER_BYTES = 32 << 10
AT_A_TURN = 4 << 10
"""Bytes of one connection that are looked at before others have their turn."""


def bind(host: str, port: int, *, client_timeout: float) -> socket.socket:
    """A socket that listens on an address.

    Args:
        host: a name or an address.
        port: 0 takes a free one.
        client_timeout: seconds after which a client that takes nothing, or answers no more, is cut off.

    Raises:
        OptionError: the port is in use, or the address not ours.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = found[0]
        listening = socket.socket(family, kind, number)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _cut_off_stalled(listening, client_timeout)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        raise OptionError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listening


def listen(options: WorkerOptions) -> socket.socket:
    """The socket that a worker's options ask for; raises as `bind`."""
    if options.uds is None:
        return bind(options.host, options.port, client_timeout=options.client_timeout)
    path = Path(options.uds)
    try:
        if path.is_socket():  # of a worker that was killed; one that lives would answer
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
                probe.connect(options.uds)
                raise OptionError(f"cannot listen on {path}: another worker does")
            path.unlink()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)  # nobody but this user may connect, from the first moment on
        try:
            listening.bind(options.uds)
        finally:
            os.umask(before)
        listening.listen(BACKLOG)
    except (OSError, AttributeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"cannot listen on {path}: {reason}") from None
    return listening


def _cut_off_stalled(listening: socket.socket, seconds: float) -> None:
    """Accepted sockets inherit these. The kernel knows best who has stopped reading, or has vanished."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_USER_TIMEOUT": int(seconds * 1000), "TCP_KEEPIDLE": max(1, int(seconds / 2))}
    options |= {"TCP_KEEPINTVL": max(1, int(seconds / 6)), "TCP_KEEPCNT": 3}
    for name, value in options.items():
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def application(service: Service) -> ASGIApp:
    """Everything that the worker answers."""
    routes = [*Protocol(service).routes(), *OpenAIApi(service).routes()]
    if not service.options.metrics:
        routes = [route for route in routes if route.path != "/metrics"]
    document = describe(service.options.client_timeout)

    async def openapi(_request: Request) -> Response:
        return JSONResponse(document)

    routes.append(Route("/openapi.json", openapi, methods=["GET"]))
    handlers: dict[Any, Any] = dict.fromkeys((BadRequestError, UnavailableError, HTTPException), http_problem)
    handlers |= {ClientDisconnect: gone, Exception: internal_problem}
    app = Guard(Starlette(routes=routes, exception_handlers=handlers), service.options)
    return Envelope(app, service.telemetry, [route.path for route in routes])


class HttpServer(uvicorn.Server):
    """uvicorn, which here leaves signals to the worker and tells when it is ready.

    Args:
        service: what to serve.
    """

    def __init__(self, service: Service) -> None:
        seconds = service.options.client_timeout
        config = uvicorn.Config(
            application(service),
            loop="asyncio",
            http=partial(ImpatientProtocol, seconds, service.options.client_connections, Counter()),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=HEADER_BYTES,
            ssl_certfile=service.options.ssl_certfile,
            ssl_keyfile=service.options.ssl_keyfile,
        )
        config.load()  # a certificate that cannot be read is found here
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone: the worker's exit code after SIGTERM is 0."""
        yield


class ImpatientProtocol(H11Protocol):
    """A connection that is cut off when a request's header does not come to its end.

    uvicorn closes connections that are idle between requests; this is about those that send a header
    byte by byte, or nothing from the start.
    """

    def __init__(self, seconds: float, most: int, connected: Counter[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds, self._most, self._connected = seconds, most, connected
        self._peer, self._pending = "", bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch; one connection too many of one address is cut off at once."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) and peer else "local"
        self._connected[self._peer] += 1
        if self._most and self._connected[self._peer] > self._most:
            transport.abort()
            return
        self.loop.call_later(self._seconds, self._look, self.cycle)

    def data_received(self, data: bytes) -> None:
        """Take a little at a turn: a body in pieces of one byte costs thousands of times its size in work."""
        fed = not self._pending
        self._pending += data
        if fed:
            self._feed()

    def _feed(self) -> None:
        if self.transport.is_closing():
            self._pending.clear()
            return
        piece = bytes(self._pending[:AT_A_TURN])
        del self._pending[:AT_A_TURN]
        super().data_received(piece)
        if self._pending:
            self.transport.pause_reading()
            self.loop.call_soon(self._feed)
        elif not self.flow.read_paused:
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        super().connection_lost(exc)
        self._connected[self._peer] -= 1
        if self._connected[self._peer] <= 0:
            del self._connected[self._peer]

    def _look(self, seen: object) -> None:
        """Cut it off if no request has come since the last look, and none is being answered."""
        if self.transport.is_closing():
            return
        if self.cycle is seen and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()
        else:
            self.loop.call_later(self._seconds, self._look, self.cycle)
