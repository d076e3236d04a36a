"""The call to the pool manager: what it says, when it is repeated, and when it is given up."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from llama_ckpt.worker.announce import CallbackError, announce, worker_uri
from llama_ckpt.worker.options import WorkerOptions, is_test_mode
from tests.worker.pool_manager import pool_manager


def tell(url: str, *, within: float = 5.0) -> None:
    """Announce a worker."""
    options = WorkerOptions("w1", "m.gguf", 1, url, callback_timeout=within)
    asyncio.run(announce(options, vram_bytes=123, uri="http://127.0.0.1:1"))


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_it_says_who_is_where(status: int) -> None:
    with pool_manager(status) as manager:
        tell(manager.url)
        assert manager.calls == [{"worker_id": "w1", "vram_bytes": 123, "uri": "http://127.0.0.1:1"}]


@pytest.mark.parametrize("statuses", [(500, 204), (503, 429, 200), (408, 200)])
def test_an_answer_for_now_is_asked_again(statuses: tuple[int, ...]) -> None:
    with pool_manager(*statuses) as manager:
        tell(manager.url)
        assert len(manager.calls) == len(statuses)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 409, 422])
def test_a_refusal_is_final(status: int) -> None:
    with pool_manager(status) as manager:
        with pytest.raises(CallbackError, match=f"answered {status}, wanted 2xx"):
            tell(manager.url)
        assert len(manager.calls) == 1


def test_attempts_end() -> None:
    began = time.monotonic()
    with (
        pool_manager(500) as manager,
        pytest.raises(CallbackError, match="answered 500; tried for 1.7 seconds"),
    ):
        tell(manager.url, within=1.7)
    assert len(manager.calls) == 3  # at 0, 0.25 and 0.75 seconds; the next would be at 1.75
    assert time.monotonic() - began < 5


def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(CallbackError, match="is unreachable"):
            tell(url, within=0.5)


def test_a_callback_that_hangs() -> None:
    began = time.monotonic()
    with pool_manager(0) as manager, pytest.raises(CallbackError, match="does not answer"):
        tell(manager.url, within=0.5)
    assert len(manager.calls) == 1 and time.monotonic() - began < 5


def test_what_is_no_http() -> None:
    """A server that talks something else counts as unreachable."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        async def both() -> None:
            loop = asyncio.get_running_loop()

            def answer() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"220 smtp ready\r\n")

            answering = loop.run_in_executor(None, answer)
            options = WorkerOptions(
                "w", "m", 1, f"http://127.0.0.1:{server.getsockname()[1]}", callback_timeout=0.2
            )
            with pytest.raises(CallbackError, match="is unreachable"):
                await announce(options, vram_bytes=1, uri="u")
            await answering

        asyncio.run(both())
        assert server.fileno() >= 0


@pytest.mark.parametrize(
    ("url", "skipped"),
    [
        ("http://localhost:9999", True),
        ("http://localhost:9999/pool/ready", True),
        ("http://127.0.0.1:9999", False),
        ("http://localhost:9998", False),
        ("http://localhost:9999.example.org", False),
        ("http://pool/localhost:9999", False),
    ],
)
def test_test_mode(url: str, skipped: bool) -> None:
    try:
        assert is_test_mode(url) is skipped
    except ValueError:  # a port that is no number, which the command line refuses
        assert not skipped


def test_uri() -> None:
    assert worker_uri("127.0.0.1", 80, "http://127.0.0.1") == "http://127.0.0.1:80"
    assert worker_uri("::1", 80, "http://127.0.0.1") == "http://[::1]:80"
    assert worker_uri("0.0.0.0", 80, "http://127.0.0.1:5") == "http://127.0.0.1:80"
