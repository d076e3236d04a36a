"""Clients that leave, and jobs that are cancelled: at the next token, and the next job starts."""

from __future__ import annotations

import json
import socket
import struct
import time

import httpx
import pytest

from tests.worker.running_worker import RunningWorker, execute, parsed, raw_request, received, request

LONG = 2000  # tokens: over half a minute, if nobody stopped them


def leave(connection: socket.socket, how: str) -> None:
    """Close a connection: in order, with a reset, or only our half of it."""
    if how == "half":
        connection.shutdown(socket.SHUT_WR)
        return
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_a_client_that_goes_away_cancels_its_job(
    worker: RunningWorker, client: httpx.Client, how: str
) -> None:
    job_id = f"gone-{how}"
    connection = worker.connect()
    connection.sendall(raw_request("/execute", json.dumps(request(job_id, max_tokens=LONG)).encode()))
    answer = b""
    while answer.count(b"event: token") < 3:
        answer += connection.recv(4096)
    leave(connection, how)
    left = time.monotonic()
    assert execute(client, request(f"after-{how}"))[-1]["stop_reason"] == "MAX_TOKENS"
    assert time.monotonic() - left < 10
    ended = worker.logged("job ended", job_id=job_id)
    assert (ended["outcome"], ended["cancelled_by"]) == ("CANCELLED", "client")
    assert 3 <= ended["tokens_out"] < 500
    connection.close()


def test_a_client_that_goes_away_while_it_waits(worker: RunningWorker, client: httpx.Client) -> None:
    with client.stream("POST", "/execute", json=request("runs", max_tokens=LONG)) as answer:
        events = parsed(answer.iter_lines())
        assert next(events)["type"] == "started"
        waiting = worker.connect()
        waiting.sendall(raw_request("/execute", json.dumps(request("waits")).encode()))
        assert b"200 OK" in waiting.recv(4096)
        waiting.close()
        ended = worker.logged("job ended", job_id="waits")
        assert (ended["outcome"], ended["tokens_out"]) == ("CANCELLED", 0)
    worker.logged("job ended", job_id="runs")
    assert not [line for line in worker.log if line["message"] == "job started" and line["job_id"] == "waits"]


def test_cancel_a_running_job(worker: RunningWorker, client: httpx.Client) -> None:
    with (
        worker.client() as other,
        client.stream("POST", "/execute", json=request("stop me", max_tokens=LONG)) as a,
    ):
        events = parsed(a.iter_lines())
        seen = [next(events) for _ in range(4)]
        answer = other.post("/cancel", json={"job_id": "stop me"})
        assert (answer.status_code, answer.json()) == (202, {"job_id": "stop me", "status": "cancelling"})
        seen += events
    end = seen[-1]
    assert end["stop_reason"] == "CANCELLED" and 3 <= end["tokens_out"] < 500
    assert worker.logged("job ended", job_id="stop me")["cancelled_by"] == "request"
    assert len(worker.ends_of("stop me")) == 1


def test_cancel_a_waiting_job(worker: RunningWorker, client: httpx.Client) -> None:
    with worker.client() as waiting, worker.client() as other:
        with client.stream("POST", "/execute", json=request("first", max_tokens=LONG)) as first:
            events = parsed(first.iter_lines())  # kept: a dropped iterator hangs up
            assert next(events)["type"] == "started"
            with waiting.stream("POST", "/execute", json=request("second")) as second:
                assert other.post("/cancel", json={"job_id": "second"}).status_code == 202
                (end,) = parsed(second.iter_lines())
                assert (end["type"], end["stop_reason"], end["tokens_out"]) == ("end", "CANCELLED", 0)
            assert other.post("/cancel", json={"job_id": "first"}).status_code == 202


def test_cancel_an_unknown_and_a_finished_job(reciter_client: httpx.Client) -> None:
    execute(reciter_client, request("finished", prompt="a"))
    for job_id in ("unknown", "finished"):
        answer = reciter_client.post("/cancel", json={"job_id": job_id})
        assert answer.status_code == 404
        assert answer.json()["errors"][0]["field"] == "job_id"


@pytest.mark.parametrize("body", [{}, {"job_id": ""}, {"job_id": 5}, []])
def test_cancel_nothing(reciter_client: httpx.Client, body: object) -> None:
    assert reciter_client.post("/cancel", json=body).status_code == 400


def test_a_client_that_reads_nothing_holds_nobody_up(tight: RunningWorker) -> None:
    """Its events wait in the sockets' buffers and here; the next job has its turn all the same."""
    idle = tight.connect()
    idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    idle.sendall(raw_request("/execute", json.dumps(request("unread", max_tokens=40)).encode()))
    tight.logged("job started", job_id="unread")
    with tight.client() as client:
        end = execute(client, request("next", max_tokens=1))[-1]
        assert end.get("stop_reason") == "MAX_TOKENS", end
    assert tight.logged("job ended", job_id="unread")["outcome"] == "MAX_TOKENS"
    idle.close()


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost:", b"POST /execute HT"])
def test_a_request_that_never_ends_is_cut_off(tight: RunningWorker, sent: bytes) -> None:
    """--client-timeout is one second there."""
    with tight.connect() as connection:
        connection.sendall(sent)
        began = time.monotonic()
        try:
            assert connection.recv(4096) == b""
        except ConnectionResetError:
            pass
        assert 0.5 < time.monotonic() - began < 10


def test_a_body_that_never_comes(tight: RunningWorker) -> None:
    with tight.connect() as connection:
        connection.sendall(raw_request("/execute", b"{").replace(b"Content-Length: 1", b"Content-Length: 9"))
        answer = received(connection)
    assert b" 400 " in answer and b'"constraint":"timeout"' in answer


def test_a_busy_connection_is_not_cut_off(tight: RunningWorker) -> None:
    """Requests that come one after the other over one connection, for longer than --client-timeout."""
    until = time.monotonic() + 2.2
    with tight.client() as client:
        while time.monotonic() < until:
            assert client.get("/health").status_code == 200
            execute(client, request("busy", max_tokens=2))
