"""A worker's life: bind, load, announce, serve, stop; and its exit codes.

0  stopped by SIGTERM or SIGINT
1  the callback could not be told, or the model's process ended while loading
2  bad options, a bad model file, a port in use, a missing GPU: nothing was announced
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.worker.announce import CallbackError, announce, worker_uri
from llama_ckpt.worker.logs import JsonLines, log
from llama_ckpt.worker.model_link import RefusedError
from llama_ckpt.worker.options import WorkerOptions
from llama_ckpt.worker.service import Service
from llama_ckpt.worker.serving import HttpServer, listen

__all__ = ["Lifecycle"]

BAD_INPUT, FAILED = 2, 1
LAST_WORDS = 0.5  # seconds in which clients get their last events, whatever the grace period


class Lifecycle:
    """One worker, from its start to its exit code."""

    def __init__(self, options: WorkerOptions, logging: JsonLines) -> None:
        self._options, self._logging = options, logging
        self._service = Service(options)
        self._signals = 0
        self._told, self._hurried = asyncio.Event(), asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal says otherwise; returns the exit code."""
        options = self._options
        try:
            listening = listen(options)
        except LlamaCkptError as error:
            log("error", str(error))
            return BAD_INPUT
        port = options.port if options.uds else listening.getsockname()[1]
        self._logging.fields["port"] = port
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        try:
            server = HttpServer(self._service)
        except (OSError, ValueError) as error:  # the certificate
            log("error", f"TLS cannot be used: {error}")
            return BAD_INPUT
        serving = asyncio.create_task(server.serve([listening]))
        await server.ready.wait()
        log("info", "listening", host=options.host)
        try:
            scheme = "https" if options.ssl_certfile else "http"
            uri = worker_uri(options.host, port, options.callback_url, scheme=scheme)
            code = await self._live(serving, uri if options.uds is None else f"unix:{options.uds}")
        finally:
            await self._stop(server, serving)
        if code == 0:  # otherwise the last line is the one that says why
            log("info", "stopped")
        return code

    async def _live(self, serving: asyncio.Task[None], uri: str) -> int:
        starting = asyncio.create_task(self._start(uri))
        told = asyncio.create_task(self._told.wait())
        done, _ = await asyncio.wait({starting, told, serving}, return_when=asyncio.FIRST_COMPLETED)
        if starting in done:
            if (code := self._problem(starting)) is not None:
                return code
            done, _ = await asyncio.wait({told, serving}, return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        return 0 if told in done else FAILED

    async def _start(self, uri: str) -> None:
        began = time.monotonic()
        log("info", "loading the model")
        model = await self._service.load()
        log("info", "model loaded", seconds=round(time.monotonic() - began, 3), **vars(model))
        await announce(self._options, vram_bytes=model.vram_bytes, uri=uri)
        log("info", "ready", uri=uri)

    def _problem(self, starting: asyncio.Task[None]) -> int | None:
        """The exit code of a start that failed, None for one that did not."""
        try:
            starting.result()
        except RefusedError as error:
            log("error", str(error))
            return error.code
        except CallbackError as error:
            log("error", str(error))
            return FAILED
        return None

    def _on_signal(self) -> None:
        self._signals += 1
        log("info", "stopping" if self._signals == 1 else "stopping at once")
        (self._told if self._signals == 1 else self._hurried).set()

    async def _stop(self, server: HttpServer, serving: asyncio.Task[None]) -> None:
        until = time.monotonic() + self._options.grace
        self._service.state = "stopping"
        if self._service.model is not None:
            queue = self._service.queue
            if self._options.drain:
                log("info", "draining", jobs=len(queue) + queue.n_running)
                await self._wait_for(queue.until_empty(), max(0.0, self._options.grace - LAST_WORDS))
            queue.cancel_all("shutdown")
            await self._wait_for(queue.until_empty(), max(LAST_WORDS, until - time.monotonic()))
            queue.abandon(None, "the worker is stopping")
        server.config.timeout_graceful_shutdown = max(LAST_WORDS, until - time.monotonic())  # type: ignore[assignment]
        server.should_exit = True
        with contextlib.suppress(Exception):
            await serving
        if self._options.uds:
            Path(self._options.uds).unlink(missing_ok=True)
        await self._service.stop()

    async def _wait_for(self, waiting: Coroutine[Any, Any, object], seconds: float) -> None:
        """Wait for something, but not longer than that, nor after a second signal."""
        tasks: set[asyncio.Task[object]] = {
            asyncio.create_task(waiting),
            asyncio.create_task(self._hurried.wait()),
        }
        _, pending = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
