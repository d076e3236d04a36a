"""The call to the pool manager: here I am, this much memory, at this address."""

from __future__ import annotations

import asyncio
import socket
import time
from urllib.parse import urlsplit

import httpx

from llama_ckpt.worker.logs import log
from llama_ckpt.worker.options import WorkerOptions, is_test_mode, without_secrets

__all__ = ["CallbackError", "announce", "worker_uri"]

ATTEMPT = 5.0  # seconds that one attempt may take
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
FOR_NOW = (408, 425, 429)  # answers that ask to come again, besides 5xx


class CallbackError(Exception):
    """The pool manager could not be told."""


async def announce(options: WorkerOptions, *, vram_bytes: int, uri: str) -> None:
    """POST `{"worker_id", "vram_bytes", "uri"}` to the callback until it answers 2xx.

    No connection, no answer, 5xx, 408, 425 and 429 are tried again, with growing pauses, for
    `options.callback_timeout` seconds; any other answer is final. Redirects are not followed, and
    proxies from the environment are not used. In test mode nothing is sent.

    Raises:
        CallbackError: it did not.
    """
    url, shown = options.callback_url, without_secrets(options.callback_url)
    if is_test_mode(url):
        log("info", "test mode: the callback is not called", callback_url=shown)
        return
    body = {"worker_id": options.worker_id, "vram_bytes": vram_bytes, "uri": uri}
    until, pause = time.monotonic() + options.callback_timeout, FIRST_PAUSE
    async with httpx.AsyncClient(trust_env=False) as client:
        while (problem := await _attempt(client, url, body, until)) is not None:
            log("warning", "the callback failed", callback_url=shown, problem=problem)
            if time.monotonic() + pause >= until:
                raise CallbackError(
                    f"the callback {shown} {problem}; tried for {options.callback_timeout:g} seconds"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
    log("info", "announced", callback_url=shown, vram_bytes=vram_bytes, uri=uri)


async def _attempt(client: httpx.AsyncClient, url: str, body: dict[str, object], until: float) -> str | None:
    """None when the callback took it, else what is the matter for now; raises CallbackError for good."""
    try:
        async with asyncio.timeout(max(0.1, min(ATTEMPT, until - time.monotonic()))):
            # Streamed: only the status counts, and a body without end would hold us.
            async with client.stream("POST", url, json=body, timeout=None) as response:
                status = response.status_code
    except TimeoutError:
        return "does not answer"
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        said = str(error).replace(url, without_secrets(url))
        return f"is unreachable ({said or type(error).__name__})"
    if 200 <= status < 300:
        return None
    if status >= 500 or status in FOR_NOW:
        return f"answered {status}"
    raise CallbackError(f"the callback {without_secrets(url)} answered {status}, wanted 2xx")


def worker_uri(host: str, port: int, callback_url: str, *, scheme: str = "http") -> str:
    """Where the pool manager reaches this worker.

    A worker that listens on every address names the one that it reaches the callback from.
    """
    if host in ("0.0.0.0", "::", ""):
        host = _own_address(callback_url) or socket.gethostname()
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _own_address(callback_url: str) -> str | None:
    parts = urlsplit(callback_url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # of a datagram socket: picks an interface, sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return None
