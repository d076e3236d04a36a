"""Who may ask: what is looked at of every request before anything else is done for it.

In this order: a framing that two readers would read differently, the name that the client called us by, the
page that made a browser ask, the key, and how much one client asks for at once.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_ckpt.worker.options import WorkerOptions, allowed_hosts
from llama_ckpt.worker.replies import Fault, problem

__all__ = ["OPEN", "Guard", "key_number", "owner_of"]

OPEN = ("/health",)
"""What is answered without a key: whoever looks after workers asks it every second."""

OWNER = "llama_ckpt.owner"
"""Where a request's scope has the number of its key."""


def key_number(keys: Sequence[str], given: str) -> int | None:
    """Which of the keys that is. Every key is compared, each in the same time whatever is right of it."""
    data, found = given.encode("utf-8", "surrogateescape"), None
    for number, key in enumerate(keys):
        if hmac.compare_digest(key.encode("utf-8"), data):
            found = number
    return found


def owner_of(request: Request) -> int | None:
    """The number of the key that a request came with; None where none are in use."""
    owner: int | None = request.scope.get(OWNER)
    return owner


class Guard:
    """Around the application: lets a request through, or answers it."""

    def __init__(self, app: ASGIApp, options: WorkerOptions) -> None:
        self._app, self._options = app, options
        self._hosts = allowed_hosts(options)
        self._asking: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refusal = self._refusal(request)
        if refusal is not None:
            if request.method not in ("GET", "HEAD"):  # its body would have to be read to the end
                refusal.headers["Connection"] = "close"
            await refusal(scope, receive, send)
            return
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            await self._preflight(request)(scope, receive, send)
            return
        client = str(owner_of(request)) if self._options.api_keys else _address(scope)
        most = self._options.client_requests
        if most and self._asking[client] >= most and request.url.path not in OPEN:
            fault = Fault("client", "requests", f"this client has {most} requests at once already")
            await problem(request, 429, [fault], {"Retry-After": "1", "Connection": "close"})(
                scope, receive, send
            )
            return
        self._asking[client] += 1
        try:
            await self._app(scope, receive, self._marked(request, send))
        finally:
            self._asking[client] -= 1
            if not self._asking[client]:
                del self._asking[client]

    def _refusal(self, request: Request) -> Response | None:
        names = [name for name, _ in request.scope["headers"]]
        if b"content-length" in names and b"transfer-encoding" in names:
            fault = Fault("headers", "framing", "Content-Length and Transfer-Encoding together")
            return problem(request, 400, [fault], {"Connection": "close"})
        if names.count(b"host") > 1 or not self._is_ours(request.headers.get("host", "")):
            return problem(request, 400, [Fault("host", "allowed", "this worker is not called so")])
        origin = request.headers.get("origin")
        if origin is not None and not self._may_ask(origin, request):
            return problem(request, 403, [Fault("origin", "allowed", "no page from there may ask")])
        return self._without_key(request)

    def _without_key(self, request: Request) -> Response | None:
        keys = self._options.api_keys
        if not keys or request.url.path in OPEN or request.method == "OPTIONS":
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        number = key_number(keys, given.strip())
        if scheme.lower() != "bearer" or number is None:
            fault = Fault("authorization", "key", "a key is wanted: Authorization: Bearer KEY")
            return problem(request, 401, [fault], {"WWW-Authenticate": "Bearer"})
        request.scope[OWNER] = number
        return None

    def _is_ours(self, host: str) -> bool:
        """A page whose own name was made to lead here would name that, and read what we answer."""
        return "*" in self._hosts or _without_port(host) in self._hosts

    def _may_ask(self, origin: str, request: Request) -> bool:
        allowed = self._options.allowed_origins
        own = urlsplit(origin).netloc if "://" in origin else None
        return "*" in allowed or origin in allowed or own == request.headers.get("host")

    def _preflight(self, request: Request) -> Response:
        headers = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": "600"}
        headers |= {"Access-Control-Allow-Headers": "Authorization, Content-Type, X-Correlation-Id"}
        return Response(status_code=204, headers=headers | self._for_pages(request))

    def _for_pages(self, request: Request) -> dict[str, str]:
        origin = request.headers.get("origin")
        return {} if origin is None else {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}

    def _marked(self, request: Request, send: Send) -> Send:
        """Answers that a page of another origin may read say so."""
        extra = [(k.lower().encode(), v.encode("latin-1")) for k, v in self._for_pages(request).items()]
        if not extra:
            return send

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        return marked


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "local"


def _without_port(host: str) -> str:
    """`localhost:80` is localhost, `[::1]:80` is [::1]."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() and not host.endswith("]") else host).lower()
