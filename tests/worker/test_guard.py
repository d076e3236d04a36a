"""Who may ask a worker, and what never reaches its log: each promise of docs/worker.md's threat model."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from llama_ckpt.errors import OptionError
from llama_ckpt.worker.guard import Guard, key_number, owner_of
from llama_ckpt.worker.options import (
    WorkerOptions,
    allowed_hosts,
    is_loopback,
    parse_options,
    without_secrets,
)
from tests.worker.running_worker import RunningWorker, execute, request, running

REQUIRED = "--worker-id w --model m.gguf --port 0 --callback-url http://localhost:9999".split()


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    from starlette.requests import Request

    await JSONResponse({"owner": owner_of(Request(scope))})(scope, receive, send)


def asked(
    path: str = "/execute", headers: dict[str, str] | None = None, method: str = "POST", **options: Any
) -> httpx.Response:
    """What a guarded application answers."""
    guard = Guard(inner, WorkerOptions("w", "m", 0, "http://localhost:9999", **options))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(ask())


def constraint(answer: httpx.Response) -> tuple[int, str, str]:
    fault = answer.json()["errors"][0]
    return answer.status_code, fault["field"], fault["constraint"]


KEYS = {"api_keys": ("first-key", "zweiter-Schl\u00fcssel")}


def test_a_key_is_wanted_of_everything_but_health() -> None:
    assert constraint(asked(**KEYS)) == (401, "authorization", "key")
    assert constraint(asked(headers={"Authorization": "Bearer first"}, **KEYS)) == (
        401,
        "authorization",
        "key",
    )
    assert constraint(asked(headers={"Authorization": "Basic first-key"}, **KEYS)) == (
        401,
        "authorization",
        "key",
    )
    assert constraint(asked("/metrics", method="GET", **KEYS)) == (401, "authorization", "key")
    assert asked("/health", method="GET", **KEYS).status_code == 200
    assert asked(headers={"Authorization": "bearer first-key"}, **KEYS).json() == {"owner": 0}
    assert asked().json() == {"owner": None}


def test_each_key_is_compared_with_all_of_what_came() -> None:
    keys = KEYS["api_keys"]
    assert [key_number(keys, key) for key in (*keys, "", "first-ke", "first-key ", "\udcff")] == [
        0,
        1,
        *[None] * 4,
    ]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]", "[::1]:80"])
def test_loopback_is_called_by_its_names(host: str) -> None:
    assert asked(headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8080", "", "localhost@evil", "[::1"]
)
def test_a_name_that_was_bent_to_loopback_is_refused(host: str) -> None:
    """DNS rebinding: the page's own name leads to 127.0.0.1, and the browser says that name."""
    assert constraint(asked(headers={"Host": host})) == (400, "host", "allowed")
    assert asked(headers={"Host": "evil.example"}, allowed_hosts=("Evil.example",)).status_code == 200


def test_pages_of_other_origins_are_refused_unless_they_are_named() -> None:
    page = {"Origin": "https://page.example"}
    assert constraint(asked(headers=page)) == (403, "origin", "allowed")
    assert constraint(asked(headers={"Origin": "null"})) == (403, "origin", "allowed")
    assert asked(headers={"Origin": "http://127.0.0.1:8080"}).status_code == 200
    answer = asked(headers=page, allowed_origins=("https://page.example",))
    assert (
        answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://page.example"
    )
    before = {**page, "Access-Control-Request-Method": "POST"}
    answer = asked(headers=before, method="OPTIONS", allowed_origins=("https://page.example",), **KEYS)
    assert answer.status_code == 204 and "Authorization" in answer.headers["access-control-allow-headers"]


def test_two_lengths_of_one_body_are_refused_and_closed() -> None:
    answer = asked(headers={"Content-Length": "5", "Transfer-Encoding": "chunked"})
    assert constraint(answer) == (400, "headers", "framing") and answer.headers["connection"] == "close"


def test_one_client_asks_for_so_much_at_once() -> None:
    options = WorkerOptions("w", "m", 0, "http://localhost:9999", client_requests=2)
    inside, go = asyncio.Semaphore(0), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        inside.release()
        await go.wait()
        await inner(scope, receive, send)

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(Guard(slow, options))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            first = [asyncio.create_task(client.get("/v1/models")) for _ in range(2)]
            await inside.acquire()
            await inside.acquire()
            third = await client.get("/v1/models")
            go.set()
            codes = [(await one).status_code for one in first]
            return [*codes, third.status_code, (await client.get("/v1/models")).status_code]

    assert asyncio.run(ask()) == [200, 200, 429, 200]


def test_beyond_loopback_a_key_is_wanted(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("k-one\n\n k-two \n")
    for host in ("0.0.0.0", "::", "192.168.0.5", "a-name"):
        with pytest.raises(
            OptionError, match="without a key, which everybody could use, wanted --api-key-file"
        ):
            parse_options([*REQUIRED, "--host", host])
        parse_options([*REQUIRED, "--host", host, "--insecure"])
        options = parse_options(
            [*REQUIRED, "--host", host, "--api-key-file", str(keys), "--api-key", "k-zero"]
        )
        assert options.api_keys == ("k-zero", "k-one", "k-two") and allowed_hosts(options) == ("*",)
        assert "k-" not in repr(options)
    keys.write_text("\n")
    for wrong in (
        ["--api-key-file", str(keys)],
        ["--api-key-file", str(tmp_path)],
        ["--ssl-certfile", "c.pem"],
    ):
        with pytest.raises(OptionError):
            parse_options([*REQUIRED, *wrong])
    assert [is_loopback(one) for one in ("127.8.8.8", "::1", "localhost", "10.0.0.1", "localhost.evil")] == [
        *[True] * 3,
        *[False] * 2,
    ]


def test_urls_are_logged_without_secrets() -> None:
    assert without_secrets("https://me:pw@host:8/a?token=x#y") == "https://host:8/a?\u2026"
    assert without_secrets("http://host/a") == "http://host/a" and "pw" not in without_secrets("me:pw@host")
    with pytest.raises(OptionError) as caught:
        parse_options([*REQUIRED[:-1], "ftp://me:secret@host/?k=secret"])
    assert "secret" not in str(caught.value)


def test_a_worker_with_keys_on_a_socket_of_the_file_system(reciter_model: Path, tmp_path: Path) -> None:
    keys, place = tmp_path / "keys", tmp_path / "s"
    keys.write_text("alpha-secret\nbeta-secret\n")
    options = ["--uds", str(place), "--api-key-file", str(keys), "--no-metrics", "--client-requests", "3"]
    with running(reciter_model, *options) as worker:
        worker.ready()
        assert place.stat().st_mode & 0o777 == 0o600

        def client(key: str) -> httpx.Client:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            transport = httpx.HTTPTransport(uds=str(place))
            return httpx.Client(transport=transport, base_url="http://worker", headers=headers, timeout=30)

        with client("alpha-secret") as alpha, client("beta-secret") as beta, client("") as nobody:
            assert nobody.get("/health").status_code == 200
            assert nobody.get("/v1/models").status_code == 401 and alpha.get("/metrics").status_code == 404
            with alpha.stream("POST", "/execute", json=request("mine", prompt="a", max_tokens=100)) as answer:
                lines = answer.iter_lines()
                next(lines)
                assert beta.post("/cancel", json={"job_id": "mine"}).status_code == 404
                assert alpha.post("/cancel", json={"job_id": "mine"}).status_code in (202, 404)
                assert "event: end" in list(lines)
            assert execute(beta, request("theirs", prompt="a"))[-1]["type"] == "end"
        assert worker.stop() == 0 and not place.exists()
        assert "secret" not in json.dumps(worker.log)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_tls(reciter_model: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext"
    made += " subjectAltName=IP:127.0.0.1"
    subprocess.run([*made.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with running(reciter_model, "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)) as worker:
        assert worker.ready().logged("ready")["uri"].startswith("https://")
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(
            base_url=f"https://127.0.0.1:{worker.port}", verify=context, trust_env=False
        ) as client:
            assert client.get("/health").json()["status"] == "healthy"
        with worker.connect() as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP/1.1 200")
        assert not [line for line in worker.log if line["level"] == "error"]
    key.write_text("no key")
    with running(reciter_model, "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)) as worker:
        assert worker.process.wait(30) == 2
        assert any(line["message"].startswith("TLS cannot be used: ") for line in worker.log)


JSON = b"Content-Type: application/json\r\n"
BROKEN = [
    b"POST /execute HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Content-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /execute HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /execute HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Content-Length: 50\r\n\r\n{",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
    b"GET  / HTTP/9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60) + b"\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
]


def test_what_clients_do_to_their_framing_is_no_error_of_ours(reciter: RunningWorker) -> None:
    before = len(reciter.log)
    for data in BROKEN:
        with reciter.connect() as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(10)
            got = b""
            while part := connection.recv(65536):
                got += part
            assert not got or got.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), got[:200]
    with reciter.client() as client:
        assert client.get("/health").status_code == 200
    assert not [line for line in reciter.log[before:] if line["level"] == "error" or "trace" in line]


def test_a_megabyte_of_faults_is_counted_and_capped(
    reciter: RunningWorker, reciter_client: httpx.Client
) -> None:
    faults = {"messages": [{"role": "me", "content": [{"type": 1}] * 3}] * 9000}
    many = {"messages": [{"role": "x" * 900, "content": 5}] * 30}
    for body, least in ((faults, 1), (many, 21)):
        answer = reciter_client.post("/v1/chat/completions", json=body)
        errors = answer.json()["errors"]
        assert answer.status_code == 400 and least <= len(errors) <= 21 and len(answer.content) < 20_000
        assert errors[-1]["field"] in ("body", "messages")
    assert (
        reciter_client.post("/execute", json=request("x" * 257)).json()["errors"][0]["constraint"]
        == "max_length"
    )


def test_a_body_of_tiny_pieces_holds_nobody_up(reciter: RunningWorker) -> None:
    """Each byte with six around it: a hundred thousand take seconds of work, and none of health's time."""
    head = b"POST /execute HTTP/1.1\r\nHost: localhost\r\n" + JSON
    pieces = b"1\r\n \r\n" * 100_000 + b"0\r\n\r\n"
    with reciter.connect() as connection, reciter.client() as client:
        sender = threading.Thread(
            target=connection.sendall, args=(head + b"Transfer-Encoding: chunked\r\n\r\n" + pieces,)
        )
        sender.start()
        waits = []
        for _ in range(10):
            began = time.monotonic()
            assert client.get("/health").status_code == 200
            waits.append(time.monotonic() - began)
        assert sorted(waits)[5] < 0.3  # of a busy machine; a whole read at once took a second and more
        sender.join(60)
        connection.settimeout(60)
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
