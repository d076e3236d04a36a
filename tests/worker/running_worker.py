"""A real worker in a process of its own, over a real port of the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx

from llama_ckpt.worker.telemetry import resident_bytes

PATIENCE = 60.0
TEST_MODE = "http://localhost:9999"

Json = dict[str, Any]


class RunningWorker:
    """A worker that was started; its log is read as it comes.

    Args:
        model: the GGUF file.
        options: further words of its command line.
        callback_url: test mode unless told otherwise.
        environment: variables to set for it.
        stderr: where its log goes; without it, it is read.
        port: 0 takes a free one, which the log says.
    """

    def __init__(
        self,
        model: Path | str,
        *options: str,
        callback_url: str = TEST_MODE,
        environment: Mapping[str, str] | None = None,
        stderr: IO[bytes] | None = None,
        port: int = 0,
    ) -> None:
        command = [sys.executable, "-m", "llama_ckpt.worker", "--worker-id", "test", "--port", str(port)]
        command += ["--model", str(model), "--callback-url", callback_url, *options]
        variables = {**os.environ, **(environment or {})}
        self.process = subprocess.Popen(
            command, stderr=stderr or subprocess.PIPE, stdin=subprocess.DEVNULL, env=variables
        )
        self.log: list[Json] = []
        self._news, self._closed = threading.Condition(), False
        if stderr is None:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.log.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._closed = True
            self._news.notify_all()

    def logged(self, message: str, **fields: object) -> Json:
        """The first log line with that message and those fields; waits for it."""

        def find() -> Json | None:
            lines = (line for line in self.log if line["message"] == message)
            return next((line for line in lines if fields.items() <= line.items()), None)

        with self._news:
            self._news.wait_for(lambda: find() is not None or self._closed, PATIENCE)
            found = find()
        assert found is not None, f"no {message!r} with {fields} in {self.log[-20:]}"
        return found

    def ready(self) -> RunningWorker:
        """The worker, once it takes jobs."""
        self.logged("ready")
        return self

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.logged("listening")["port"])

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE)

    def connect(self) -> socket.socket:
        """A bare connection to it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def ends_of(self, job_id: str) -> list[Json]:
        """The log lines of a job's terminal events."""
        return [line for line in self.log if line["message"] == "job ended" and line["job_id"] == job_id]

    def model_pid(self) -> int:
        """The number of the process that holds the model, as soon as there is one."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while not (found := children.read_text().split()):
            assert self.process.poll() is None
        (pid,) = map(int, found)
        return pid

    def resident_bytes(self) -> tuple[float, float]:
        """The memory of the worker and of the model's process."""
        return resident_bytes(self.process.pid), resident_bytes(self.model_pid())

    def stop(self, *, within: float = PATIENCE) -> int:
        """Send SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)

    def end(self) -> Json:
        """Wait until it ends by itself; its last log line."""
        self.process.wait(PATIENCE)
        with self._news:
            self._news.wait_for(lambda: self._closed, PATIENCE)
        return self.log[-1]

    def close(self) -> None:
        """End it, however it is."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running(model: Path | str, *options: str, **others: Any) -> Iterator[RunningWorker]:
    """A worker for the length of a block; arguments as `RunningWorker` takes them."""
    worker = RunningWorker(model, *options, **others)
    try:
        yield worker
    finally:
        worker.close()


def request(job_id: str, /, **changes: object) -> Json:
    """The body of an /execute request: eight greedy tokens."""
    return {"job_id": job_id, "prompt": "Hello", "max_tokens": 8, "temperature": 0, **changes}


def parsed(stream: Iterator[str]) -> Iterator[Json]:
    """The events of lines of a stream; the name that SSE gives them is the one in the data."""
    name = ""
    for line in stream:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            assert event["type"] == name
            yield event


def execute(client: httpx.Client, body: Json, then: Callable[[Json], object] | None = None) -> list[Json]:
    """Run a job to its end; its events, each first given to `then` as it comes."""
    events = []
    with client.stream("POST", "/execute", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        for event in parsed(answer.iter_lines()):
            events.append(event)
            if then is not None:
                then(event)
    return events


def text_of(events: list[Json]) -> str:
    """The text of the token events."""
    return "".join(event["t"] for event in events if event["type"] == "token")


def raw_request(path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a POST of JSON."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def received(connection: socket.socket) -> bytes:
    """Everything that comes until the other side closes; one `recv` may return a part of an answer."""
    return b"".join(iter(lambda: connection.recv(65536), b""))
