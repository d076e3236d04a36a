"""What a request that cannot be served is told, bodies within their limits, and correlation ids.

    {"errors": [{"field", "constraint", "message", "value"?}, …]}     all faults of a request at once

Paths under /v1 have OpenAI's `error` beside it. Neither ever repeats a prompt.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_ckpt.plain_text import shortened
from llama_ckpt.worker.logs import correlation_id, log
from llama_ckpt.worker.telemetry import Telemetry

__all__ = [
    "BODY_BYTES",
    "BadRequestError",
    "Envelope",
    "Fault",
    "UnavailableError",
    "body_of",
    "gone",
    "http_problem",
    "internal_problem",
    "openai_error",
    "problem",
]

MOST_FAULTS, TOO_MANY = 20, 2_000
"""Faults that a request is told of, and that are looked at."""

MOST_CHUNKS = 10_000
"""Pieces that a body may come in."""

LONG = 1 << 14
"""Bytes from which on a body is read on a thread of its own."""

BODY_BYTES = 1 << 20
"""The longest body: the longest prompt takes 393,216 bytes when every character is escaped."""

DRAINED = 16 << 20  # of a body too long, read and thrown away so that the client gets to read the answer
QUIET = ("/health", "/metrics")  # asked every second, logged only when they fail
CORRELATION_ID = re.compile(r"[\x21-\x7e]{1,128}")
CONSTRAINTS = {
    "missing": "required", "string_too_short": "min_length", "string_too_long": "max_length",
    "too_short": "min_items", "too_long": "max_items", "greater_than_equal": "minimum",
    "less_than_equal": "maximum", "less_than": "maximum", "literal_error": "enum",
    "finite_number": "finite", "none_required": "unsupported", "string_unicode": "unicode",
}  # fmt: skip

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a request; `value` only where it is a number, true, false or null."""

    field: str
    constraint: str
    message: str
    value: object = ...

    def payload(self) -> dict[str, object]:
        """As JSON has it."""
        return {key: value for key, value in vars(self).items() if value is not ...}


class BadRequestError(Exception):
    """A request that is wrong; answered with 400 and all its faults."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{fault.field}: {fault.message}" for fault in faults))
        self.faults = list(faults)


class UnavailableError(Exception):
    """A request that is right, at a time when it can't be served; answered with 503.

    Args:
        constraint: "queue", "loading", "faulted" or "stopping".
        message: a sentence.
        retry_after: seconds after which to ask again; None where that is no use.
    """

    def __init__(self, constraint: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.constraint, self.retry_after = constraint, retry_after


_LONG_BODIES = ThreadPoolExecutor(1, "long-bodies")
"""One at a time: reading a megabyte holds the interpreter, and several would keep the event loop in line."""


async def body_of(request: Request, kind: type[Body], *, within: float) -> Body:
    """A request's body, checked.

    Args:
        request: whose body has not been read yet.
        kind: what it has to be.
        within: seconds in which the client has to have sent it.

    Raises:
        BadRequestError: it is not; with every fault.
        starlette.requests.ClientDisconnect: the client has gone.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise _bad("body", "content_type", "the Content-Type has to be application/json")
    try:
        async with asyncio.timeout(within):
            data = await _bytes_of(request)
    except TimeoutError:
        raise _bad("body", "timeout", f"the body did not arrive within {within:g} seconds") from None
    try:
        value = await _off_the_loop(data, _parsed, data)
    except (ValueError, RecursionError) as error:
        where = f" at byte {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise _bad("body", "json", f"the body is no JSON{where}") from None
    try:
        checked: Body = await _off_the_loop(data, kind.model_validate, value)
    except ValidationError as error:
        raise BadRequestError(_faults(error)) from None
    return checked


async def _off_the_loop(data: bytes, call: Callable[[Any], Any], given: Any) -> Any:
    """What takes long of a long body is no turn of the event loop's, where everybody else waits."""
    if len(data) < LONG:
        return call(given)
    return await asyncio.get_running_loop().run_in_executor(_LONG_BODIES, call, given)


def _parsed(data: bytes) -> Any:
    return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)


def _faults(error: ValidationError) -> list[Fault]:
    """The first faults, and how many more there are: a megabyte can have a hundred thousand."""
    n = error.error_count()
    if n > TOO_MANY:  # not even listed
        return [Fault("body", "faults", f"the body has {n} faults, more than {TOO_MANY}")]
    found = [_fault(dict(one)) for one in error.errors(include_url=False)[:MOST_FAULTS]]
    if n > MOST_FAULTS:
        found.append(Fault("body", "faults", f"the body has {n - MOST_FAULTS} more faults"))
    return found


async def _bytes_of(request: Request) -> bytes:
    chunks, size, n = [], 0, 0
    async for chunk in request.stream():
        size, n = size + len(chunk), n + 1
        if n > MOST_CHUNKS:
            raise _bad("body", "chunks", f"the body came in more than {MOST_CHUNKS} pieces")
        if size <= BODY_BYTES:
            chunks.append(chunk)
        elif size > DRAINED:
            break
        else:
            chunks.clear()
    if size > BODY_BYTES:
        raise _bad("body", "max_bytes", f"the body has more than {BODY_BYTES} bytes")
    return b"".join(chunks)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _bad(field: str, constraint: str, message: str) -> BadRequestError:
    return BadRequestError([Fault(field, constraint, message)])


def _fault(error: Mapping[str, Any]) -> Fault:
    field = ".".join(map(str, error["loc"])) or "body"
    constraint = CONSTRAINTS.get(error["type"], "type")
    value = error["input"] if error["loc"] and error["loc"][0] not in ("prompt", "messages") else ...
    echoed = (
        value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) < 2**64)
    )
    echoed = echoed and constraint != "required"
    return Fault(shortened(field, 100), constraint, shortened(error["msg"], 200), value if echoed else ...)


def problem(
    request: Request, status: int, faults: Sequence[Fault], headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that is not served."""
    content: dict[str, object] = {"errors": [fault.payload() for fault in faults]}
    if request.url.path.startswith("/v1/"):
        message = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        kind = "invalid_request_error" if status < 500 else "server_error"
        content["error"] = openai_error(message, kind, faults[0].constraint, faults[0].field)
    return JSONResponse(content, status, headers)


def openai_error(message: str, kind: str, code: str, param: str | None = None) -> dict[str, object]:
    """An error as OpenAI's API words it."""
    return {"message": message, "type": kind, "param": param, "code": code}


def http_problem(request: Request, error: Exception) -> Response:
    """The answer to what a handler raises, and to paths and methods that do not exist."""
    if isinstance(error, BadRequestError):
        # What is left of a body that is too long or too late would have to be read first.
        unread = any(fault.constraint in ("max_bytes", "timeout", "chunks") for fault in error.faults)
        return problem(request, 400, error.faults, {"Connection": "close"} if unread else None)
    if isinstance(error, UnavailableError):
        wait = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return problem(request, 503, [Fault("worker", error.constraint, str(error))], wait)
    assert isinstance(error, HTTPException)
    field = "method" if error.status_code == 405 else "path"
    return problem(request, error.status_code, [Fault(field, "unknown", error.detail)], error.headers)


def gone(_request: Request, _error: Exception) -> Response:
    """The answer to a client that went away while it sent its body; nobody reads it."""
    return Response(status_code=400)


def internal_problem(request: Request, error: Exception) -> Response:
    """The answer to a fault of ours; the log has the rest."""
    fault = Fault(
        "worker", "internal", f"the worker failed with {type(error).__name__}; its log has the details"
    )
    return problem(request, 500, [fault])


class Envelope:
    """Around every request: a correlation id taken over or made, counted, echoed and logged."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, paths: Sequence[str]) -> None:
        self._app, self._telemetry, self._paths = app, telemetry, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-correlation-id", b"").decode("latin-1")
        current = given if CORRELATION_ID.fullmatch(given) else uuid.uuid4().hex
        began, status = time.monotonic(), 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-correlation-id", current.encode())]
            await send(message)

        reset = correlation_id.set(current)
        try:
            await self._app(scope, receive, stamped)
        finally:
            self._note(scope, status, time.monotonic() - began)
            correlation_id.reset(reset)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._telemetry.requests.labels(path, str(status)).inc()
        if path not in QUIET or status >= 400:
            about = {"method": scope["method"], "path": scope["path"], "status": status}
            log("info", "request answered", **about, seconds=round(seconds, 4))
