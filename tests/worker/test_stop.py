"""SIGTERM: no new work, every job ends with CANCELLED, the exit code is 0."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.worker.pool_manager import pool_manager
from tests.worker.running_worker import (
    Json,
    RunningWorker,
    execute,
    parsed,
    raw_request,
    received,
    request,
    running,
)


def test_an_idle_worker_stops_at_once(reciter_model: Path) -> None:
    with running(reciter_model) as worker:
        pid = worker.ready().model_pid()
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 5
        assert worker.end()["message"] == "stopped"
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_loads_stops_at_once(embedded_model: Path, number: signal.Signals) -> None:
    with running(embedded_model) as worker:
        worker.logged("loading the model")
        worker.process.send_signal(number)
        assert worker.process.wait(20) == 0


def test_a_worker_whose_callback_hangs_stops_at_once(reciter_model: Path) -> None:
    with pool_manager(0) as manager, running(reciter_model, callback_url=manager.url) as worker:
        worker.logged("model loaded")
        assert worker.stop(within=4) == 0  # one attempt alone would take five seconds


def test_under_load_with_a_full_queue(embedded_model: Path) -> None:
    """One job runs, four wait, a sixth is refused; then SIGTERM."""
    outcomes: dict[str, Json] = {}

    def run(worker: RunningWorker, job_id: str) -> None:
        with worker.client() as client:
            outcomes[job_id] = execute(client, request(job_id, max_tokens=2000))[-1]

    with running(embedded_model, "--queue-size", "4") as worker:
        worker.ready()
        threads = [threading.Thread(target=run, args=(worker, f"job-{n}")) for n in range(5)]
        for thread in threads:
            thread.start()
        with worker.client() as client:
            while "llama_ckpt_worker_queue_length 4.0" not in client.get("/metrics").text:
                pass
            assert client.post("/execute", json=request("sixth")).status_code == 503
            began = time.monotonic()
            worker.process.send_signal(signal.SIGTERM)
            worker.logged("stopping")
            try:
                assert client.post("/execute", json=request("late")).status_code == 503
                assert client.get("/health").json()["status"] == "stopping"
            except httpx.TransportError:
                pass  # it was faster
        assert worker.process.wait(20) == 0
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < 8
        assert {job_id: end["stop_reason"] for job_id, end in outcomes.items()} == dict.fromkeys(
            (f"job-{n}" for n in range(5)), "CANCELLED"
        )
        worker.end()
        assert all(len(worker.ends_of(f"job-{n}")) == 1 for n in range(5))
        assert all(worker.ends_of(f"job-{n}")[0]["cancelled_by"] == "shutdown" for n in range(5))


def test_the_grace_period_ends(embedded_model: Path) -> None:
    """A client that never reads its events gets no more than the grace period; nor does a long prompt."""
    with running(embedded_model, "--grace", "0.2") as worker:
        worker.ready()
        connection = worker.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = request("long prompt", prompt="and the " * 1500, max_tokens=500)
        connection.sendall(raw_request("/execute", json.dumps(body).encode()))
        worker.logged("job started")
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 5
        answer = received(connection)
        assert b'"stop_reason":"CANCELLED"' in answer
        worker.end()
        assert worker.ends_of("long prompt")[0]["outcome"] == "CANCELLED"
        connection.close()


def test_a_second_signal_hurries(embedded_model: Path) -> None:
    with running(embedded_model, "--grace", "1000") as worker, worker.ready().client() as client:
        body = request("slow", prompt="and the " * 1900, max_tokens=200)
        with client.stream("POST", "/execute", json=body) as answer:
            events = parsed(answer.iter_lines())  # kept: a dropped iterator hangs up
            assert next(events)["type"] == "started"
            worker.process.send_signal(signal.SIGTERM)
            worker.logged("stopping")
            worker.process.send_signal(signal.SIGTERM)
            assert worker.process.wait(20) == 0
