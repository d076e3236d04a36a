"""Requests to the worker's application, without a model: what is right is told that none is loaded."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from functools import cache
from pathlib import Path
from typing import Any

from llama_ckpt.errors import OptionError
from tools.fuzz.mutate import TEXTS, changed_bytes, changed_json, json_bytes

__all__ = ["change_request", "read_request", "request_seeds"]

EXECUTE = {"job_id": "a", "prompt": "Hello", "max_tokens": 4, "temperature": 0.5, "seed": 1, "stop": ["x"]}
CHAT = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    "max_tokens": 4,
    "stream": True,
}
SEEDS = (
    {"path": "/execute", "headers": {"content-type": "application/json"}, "body": EXECUTE},
    {"path": "/cancel", "headers": {"content-type": "application/json"}, "body": {"job_id": "a"}},
    {"path": "/v1/chat/completions", "headers": {"content-type": "application/json"}, "body": CHAT},
    {
        "path": "/v1/completions",
        "headers": {"content-type": "application/json"},
        "body": {"prompt": ["a"], "n": 1},
    },
)
LONGEST_ANSWER = 64 << 10


def request_seeds() -> list[bytes]:
    """Sound requests: a path, headers and a body, as JSON."""
    return [json.dumps(seed).encode() for seed in SEEDS]


def change_request(data: bytes, rng: random.Random) -> bytes:
    """Another body, mostly; or headers and a path that are damaged."""
    try:
        document = json.loads(data)
        if rng.random() < 0.75:
            return json_bytes(
                {**document, "body": changed_json(document["body"], rng, rng.choice((1, 1, 3)))}, rng
            )
        if rng.random() < 0.2:
            many = rng.choice((100, 3000)) * [rng.choice(({}, 1, "a", [[]]))]
            return json_bytes(
                {**document, "body": {**document["body"], rng.choice(("messages", "stop")): many}}, rng
            )
        name = rng.choice(
            ("host", "origin", "authorization", "content-length", "content-type", "x-correlation-id")
        )
        return json_bytes({**document, "headers": {**document["headers"], name: rng.choice(TEXTS)}}, rng)
    except (ValueError, RecursionError, TypeError, KeyError):
        return changed_bytes(data, rng)


@cache
def _application() -> Any:
    from llama_ckpt.worker.options import WorkerOptions
    from llama_ckpt.worker.service import Service
    from llama_ckpt.worker.serving import application

    logging.getLogger("llama_ckpt.worker").addHandler(_Strict())
    return application(Service(WorkerOptions("w", "m.gguf", 0, "http://localhost:9999")))


class _Strict(logging.Handler):
    """A traceback in the log is a fault of ours, whatever was asked."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            raise AssertionError(record.getMessage())


def read_request(data: bytes, _folder: Path) -> object:
    """Send a request; a status of the client's fault counts as refused."""
    path, headers, body = _parts(data)
    sent: list[Any] = []
    scope = {
        **{"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path},
        **{"raw_path": path.encode("utf-8", "replace"), "query_string": b"", "root_path": ""},
        **{"headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080)},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(_application()(scope, receive, send))
    status, answer = sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:])
    if status >= 500 and status != 503 or len(answer) > LONGEST_ANSWER:
        raise AssertionError(f"status {status}, {len(answer)} bytes")
    json.loads(answer)
    if status not in (503, 404):  # no model, no such job
        raise OptionError("a request", got=status)
    return answer


def _parts(data: bytes) -> tuple[str, list[tuple[bytes, bytes]], bytes]:
    """The path, headers and body that a mutant stands for; of a damaged one the whole is the body."""
    plain = {"host": "localhost", "content-type": "application/json"}
    try:
        document = json.loads(data)
        path, given, body = document["path"], document["headers"], json.dumps(document["body"]).encode()
    except (ValueError, RecursionError, TypeError, KeyError):
        path, given, body = "/execute", {}, data
    named = plain | (given if isinstance(given, dict) else {})
    headers = [
        (str(k).lower().encode("latin-1", "replace"), str(v).encode("utf-8", "replace"))
        for k, v in named.items()
    ]
    return str(path), headers, body
