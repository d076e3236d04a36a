"""The log: JSON lines, whatever is in them, and never waited for."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from llama_ckpt.worker.logs import JsonLines, correlation_id
from tests.worker.running_worker import execute, request, running


def lines_of(*records: logging.LogRecord) -> list[dict[str, object]]:
    """What the records become."""
    with tempfile.TemporaryFile() as file:
        handler = JsonLines(file.fileno(), {"worker_id": "w"})
        for record in records:
            handler.emit(record)
        handler.flush_within(10)
        file.seek(0)
        return [json.loads(line) for line in file]


def record(message: str, **extra: object) -> logging.LogRecord:
    """A log record."""
    made = logging.LogRecord("test", logging.INFO, __file__, 1, message, None, None)
    vars(made).update(extra)
    return made


def test_a_line_is_json_on_one_line() -> None:
    (line,) = lines_of(record('two\nlines "quoted"', fields={"path": Path("x"), "long": "y" * 9000}))
    assert line["message"] == 'two\nlines "quoted"' and line["level"] == "info"
    assert line["worker_id"] == "w" and line["path"] == "x"
    assert len(str(line["long"])) < 600


def test_the_correlation_id_of_a_request_is_in_its_lines() -> None:
    reset = correlation_id.set("c-1")
    try:
        (line,) = lines_of(record("within"))
    finally:
        correlation_id.reset(reset)
    assert line["correlation_id"] == "c-1"
    assert "correlation_id" not in lines_of(record("outside"))[0]


def test_an_exception_has_its_trace() -> None:
    try:
        raise ValueError("oh")
    except ValueError:
        (line,) = lines_of(record("failed", exc_info=sys.exc_info()))
    assert "ValueError: oh" in str(line["trace"])


def test_a_reader_that_does_not_read_costs_lines_only() -> None:
    read, write = os.pipe()
    handler = JsonLines(write, {})
    for _ in range(12_000):
        handler.emit(record("x" * 100))
    assert handler._dropped > 0
    began = time.monotonic()
    handler.flush_within(0.2)
    assert time.monotonic() - began < 5
    os.close(read)  # every write fails from now on, and the thread ends its work all the same
    handler.flush_within(10)
    assert handler._lines.unfinished_tasks == 0
    os.close(write)


def test_a_worker_whose_log_nobody_reads(reciter_model: Path) -> None:
    """As a pool manager does that takes a pipe and forgets it: far more lines than a pipe holds."""
    command = [sys.executable, "-m", "llama_ckpt.worker", "--worker-id", "test", "--port", "0"]
    command += ["--model", str(reciter_model), "--callback-url", "http://localhost:9999"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        line = {}
        while line.get("message") != "ready":
            line = json.loads(process.stderr.readline())
        url = f"http://127.0.0.1:{line['port']}"
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            for number in range(120):
                execute(client, request(f"unread-{number}" + "x" * 200, prompt="a", max_tokens=1))
            assert client.get("/health").status_code == 200
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_worker_whose_log_has_no_room(reciter_model: Path) -> None:
    """Standard error is a file on a full disk: lines are lost, jobs are not."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with open("/dev/full", "wb") as full, running(reciter_model, stderr=full, port=port) as worker:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        break
                time.sleep(0.1)
            ends = [execute(client, request(f"full-{n}", prompt="a", max_tokens=1))[-1] for n in range(20)]
        assert {one["type"] for one in ends} == {"end"} and worker.stop() == 0


def test_what_libraries_print_is_in_the_log_as_json(reciter_model: Path, tmp_path: Path) -> None:
    """Here a module that Python imports by itself in every process prints in the model's."""
    printing = "import sys\nif sys.flags.safe_path: print('a native warning', file=sys.stderr)\n"
    (tmp_path / "sitecustomize.py").write_text(printing)
    with running(reciter_model, environment={"PYTHONPATH": str(tmp_path)}) as worker:
        line = worker.ready().logged("the model's process printed")
        assert (line["level"], line["text"]) == ("warning", "a native warning")
