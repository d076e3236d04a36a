"""Does the worker work here? It is started, asked for its health and for one job, and stopped.

    for step in probe_worker("model.gguf"):
        print(step.name, step.passed, step.reason, step.seconds)

All of it over the loopback interface, with a pool manager of its own; a few seconds.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from os import PathLike, fspath
from typing import IO, Any, NamedTuple

import httpx

from llama_ckpt.spawning import python_module

__all__ = ["ProbeStep", "probe_worker"]

PATIENCE = 60.0  # seconds for a large model to load, and for a slow one to answer
TOKENS = 4


class ProbeStep(NamedTuple):
    """What came of one step.

    Attributes:
        name: a few words.
        passed: whether it did what it should.
        reason: a sentence: what was seen, or what went wrong.
        seconds: how long it took.
    """

    name: str
    passed: bool
    reason: str
    seconds: float


def probe_worker(
    model_path: str | PathLike[str], *, device: str = "cpu", dtype: str = "auto"
) -> list[ProbeStep]:
    """Start a worker, ask it for its health and one streamed job, and stop it.

    Args:
        model_path: a Llama in GGUF.
        device, dtype: as the worker takes them.

    Returns:
        a step each, in that order; after one that failed the others are failed too.
    """
    with _Manager() as manager, tempfile.TemporaryFile() as log:
        options = ["--model", fspath(model_path), "--device", device, "--dtype", dtype]
        with _worker([*options, "--callback-url", manager.url], log) as process:
            probe = _Probe(manager, process, log)
            steps: list[tuple[str, Callable[[], str]]] = [
                ("worker starts and announces itself", probe.start),
                ("worker is healthy", probe.health),
                ("worker streams a job", probe.stream),
                ("worker stops when told to", probe.stop),
            ]
            return list(_climbed(steps))


def _climbed(steps: list[tuple[str, Callable[[], str]]]) -> Iterator[ProbeStep]:
    failed = ""
    for name, step in steps:
        began = time.monotonic()
        try:
            if failed:
                raise _WrongError(f"not reached: {failed}")
            passed, reason = True, step()
        except (_WrongError, httpx.HTTPError, ValueError, KeyError) as error:
            passed, reason = False, str(error) or type(error).__name__
            failed = failed or f"{name!r} failed"
        yield ProbeStep(name, passed, reason, time.monotonic() - began)


class _WrongError(Exception):
    """A step that did not do what it should."""


class _Manager(HTTPServer):
    """A pool manager that waits for one call."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/ready"
        self.call: dict[str, Any] = {}
        self.called = threading.Event()

    def __enter__(self) -> _Manager:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: _Manager

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.call = json.loads(body)
        self.send_response(204)
        self.end_headers()
        self.server.called.set()

    def log_message(self, *_: object) -> None:
        """Say nothing: this is inside another program's report."""


@contextmanager
def _worker(options: list[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    command, environment = python_module("llama_ckpt.worker")
    command += ["--worker-id", "probe", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=log, stdout=log, stdin=subprocess.DEVNULL, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class _Probe:
    """The steps; each returns what it saw or raises."""

    def __init__(self, manager: _Manager, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._manager, self._process, self._log = manager, process, log

    def start(self) -> str:
        until = time.monotonic() + PATIENCE
        while not self._manager.called.wait(0.05):
            if self._process.poll() is not None:
                raise _WrongError(f"it ended with exit code {self._process.returncode}: {self._last_words()}")
            if time.monotonic() > until:
                raise _WrongError(f"it did not announce itself within {PATIENCE:g} seconds")
        return f"at {self._manager.call['uri']}, {self._manager.call['vram_bytes']:,} bytes of weights"

    def health(self) -> str:
        with self._client() as client:
            answer = client.get("/health")
        body = answer.json()
        if answer.status_code != 200 or body["status"] != "healthy" or not body["model_loaded"]:
            raise _WrongError(f"/health answered {answer.status_code} {body}")
        return f"healthy, on the {body['memory_type']}"

    def stream(self) -> str:
        request = {"job_id": "probe", "prompt": "Hello", "max_tokens": TOKENS, "temperature": 0}
        with self._client() as client, client.stream("POST", "/execute", json=request) as answer:
            lines = list(answer.iter_lines())
        events = [json.loads(line[len("data: ") :]) for line in lines if line.startswith("data: ")]
        kinds = [event["type"] for event in events]
        if answer.status_code != 200 or kinds[:1] != ["started"] or kinds[-1:] != ["end"]:
            raise _WrongError(f"/execute answered {answer.status_code} with the events {kinds}")
        last, tokens = events[-1], [event for event in events if event["type"] == "token"]
        complete = last["stop_reason"] == "MAX_TOKENS" and last["tokens_out"] == TOKENS
        if not (complete or last["stop_reason"] == "EOS") or not tokens:
            raise _WrongError(f"the job ended with {last} after {len(tokens)} token events")
        return f"{last['tokens_out']} tokens: {''.join(event['t'] for event in tokens)!r}"

    def stop(self) -> str:
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(PATIENCE / 4)
        except subprocess.TimeoutExpired:
            raise _WrongError(f"it did not stop within {PATIENCE / 4:g} seconds after SIGTERM") from None
        if code != 0:
            raise _WrongError(f"it ended with exit code {code} after SIGTERM: {self._last_words()}")
        return "exit code 0 after SIGTERM"

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._manager.call["uri"], trust_env=False, timeout=PATIENCE)

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").splitlines() or ["no log"]
        try:
            return str(json.loads(lines[-1])["message"])
        except (ValueError, KeyError, TypeError):
            return lines[-1]
