"""A worker when things go wrong: its model stopped or killed, no room on the disk, hostile and many clients.

    python -m tools.worker_scenarios                              all of them, with their figures
    python -m tools.worker_scenarios --scenario megabytes --requests 640

- stopped: SIGSTOP of the model's process, a cancel that is not obeyed: until `/health` says `faulted`.
- killed: kill -9 of it under eight clients, who are all answered; `--restart` makes the worker sound again.
- full-disk: nothing can be written, neither the log nor a temporary file; good clients go on.
- megabytes: four send wrong requests of a megabyte at once, again and again, beside 32 good clients.
- keys: ten thousand requests with a key, and some without one between them.

Good clients all end rightly, health is answered within 100 ms throughout, memory stays within 10% of what it
was; the exit code is 1 where something is not so. The figures are printed as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from llama_ckpt.making.seeded_model import make_seeded
from tests.worker.running_worker import RunningWorker, request, running
from tools.worker_load import Load, Report, anonymous_bytes, run_load

__all__ = ["SCENARIOS", "Setting", "main"]

Json = dict[str, Any]
HEALTH_MS = 100.0
GROWN = 1.10
PATIENCE = 60.0
FEW = ("Hello", "Jesus", "The way of the earth")


@dataclass
class Setting:
    """What the scenarios share.

    Attributes:
        model: a GGUF file.
        requests: of the scenario with most of them.
        wrong: a sentence for each thing that is not as it should be.
    """

    model: Path
    requests: int
    wrong: list[str] = field(default_factory=list)

    def hold(self, what: str, holds: bool, got: object) -> None:
        """Note what does not hold."""
        if not holds:
            self.wrong.append(f"{what}: {got}")


def stopped(setting: Setting) -> Json:
    """The model's process is stopped while one job runs and another waits; the first is cancelled.

    Health says `faulted`, or `loading` where the process is started anew.
    """
    figures: Json = {}
    for options in ((), ("--restart",)):
        with running(setting.model, "--watchdog", "2", *options) as worker:
            worker.ready()
            found = asyncio.run(_stopped(worker, bool(options)))
        figures["restarted" if options else "left"] = found
        setting.hold("seconds until faulted", found["faulted_s"] < 5, found)
        setting.hold("clients that were answered", found["answers"] == 2, found)
        setting.hold("health, milliseconds", found["health_ms"] < HEALTH_MS, found)
        setting.hold("sound again", not options or found["sound_again"], found)
    return figures


async def _stopped(worker: RunningWorker, restarts: bool) -> Json:
    report, load = Report(), Load(worker.url)
    async with httpx.AsyncClient(base_url=worker.url, trust_env=False, timeout=PATIENCE) as client:
        jobs = [
            asyncio.create_task(client.post("/execute", json=request(name, max_tokens=2000)))
            for name in ("a", "b")
        ]
        started = await _started(worker, 1)
        os.kill(worker.model_pid(), signal.SIGSTOP)
        await client.post("/cancel", json={"job_id": started[0]["job_id"]})
        began = time.monotonic()
        states = await _watch(load.url, report, lambda seen: seen[-1] != "healthy")
        faulted = time.monotonic() - began
        answers = await asyncio.gather(*jobs, return_exceptions=True)
        found = {
            "faulted_s": round(faulted, 2),
            "states": states,
            "answers": sum(isinstance(one, httpx.Response) for one in answers),
        }
        if restarts:
            await _watch(load.url, report, lambda seen: seen[-1] == "healthy")
            after = await client.post("/execute", json=request("after", max_tokens=4))
            found["sound_again"] = '"type":"end"' in after.text
    return {**found, "health_ms": round(1000 * max(report.health), 1)}


def killed(setting: Setting) -> Json:
    """The model's process is killed under eight clients, three times; the worker starts it anew."""
    with running(setting.model, "--restart") as worker:
        worker.ready()
        found = asyncio.run(_killed(worker))
    setting.hold("clients without an end", found["without_an_end"] == 0, found)
    setting.hold("jobs after it", found["sound_again"] == 3, found)
    setting.hold("health, milliseconds", found["health_ms"] < HEALTH_MS, found)
    return found


async def _killed(worker: RunningWorker) -> Json:
    report, ends, sound = Report(), Counter[str](), 0
    async with httpx.AsyncClient(base_url=worker.url, trust_env=False, timeout=PATIENCE) as client:
        for turn in range(3):
            before = len(await _started(worker, 0))
            jobs = [
                asyncio.create_task(client.post("/execute", json=request(f"{turn}-{k}", max_tokens=2000)))
                for k in range(8)
            ]
            await _started(worker, before + 1)
            os.kill(worker.model_pid(), signal.SIGKILL)
            watching = asyncio.create_task(
                _watch(worker.url, report, lambda seen: seen[-1] == "healthy" and len(seen) > 1)
            )
            for answer in await asyncio.gather(*jobs):
                ends[_end_of(answer)] += 1
            await watching
            after = await client.post("/execute", json=request(f"after-{turn}", max_tokens=4))
            sound += '"type":"end"' in after.text
    return {
        **{"ends": dict(ends), "without_an_end": ends["none"], "sound_again": sound},
        "health_ms": round(1000 * max(report.health), 1),
    }


def full_disk(setting: Setting) -> Json:
    """The log goes to a device without room, and nothing can be written where temporary files go."""
    with open("/dev/full", "wb") as full, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o500)
        port = _free_port()
        with running(setting.model, stderr=full, port=port, environment={"TMPDIR": folder}) as worker:
            url = f"http://127.0.0.1:{port}"
            asyncio.run(_until_healthy(url))
            load = Load(url, requests=200, clients=16, tokens=4, prompts=FEW, plain=True)
            report = asyncio.run(run_load(load))
            code = worker.stop()
    found = {**_figures(report), "exit_code": code}
    setting.wrong += report.wrong
    setting.hold("exit code", code == 0, code)
    return found


def megabytes(setting: Setting) -> Json:
    """Four send wrong megabytes at once while 32 good clients work; memory before and after."""
    with running(setting.model) as worker:
        pids = worker.ready().process.pid, worker.model_pid()
        load = Load(worker.url, requests=320, clients=32, tokens=8, prompts=FEW, plain=True)
        asyncio.run(_beside_megabytes(load))  # warm: the allocator has seen such requests
        before = sum(map(anonymous_bytes, pids))
        report, statuses = asyncio.run(_beside_megabytes(Load(**{**vars(load), "requests": 1280, "seed": 2})))
        grown = sum(map(anonymous_bytes, pids)) / before
        errors = [line for line in worker.log if line["level"] == "error"]
    found = {
        **_figures(report),
        "bad": dict(statuses),
        "memory": round(grown, 3),
        "errors_in_log": len(errors),
    }
    setting.wrong += report.wrong
    setting.hold("statuses of bad requests", set(statuses) == {400}, statuses)
    setting.hold("health, milliseconds", report.health_ms(1) < HEALTH_MS, found["health_ms"])
    setting.hold("memory", grown < GROWN, grown)
    setting.hold("errors in the log", not errors, errors[:1])
    return found


async def _beside_megabytes(load: Load) -> tuple[Report, Counter[int]]:
    statuses: Counter[int] = Counter()
    ended = asyncio.Event()

    async def attack(body: bytes) -> None:
        async with httpx.AsyncClient(base_url=load.url, trust_env=False, timeout=PATIENCE) as client:
            while not ended.is_set():
                answer = await client.post("/v1/chat/completions", content=body, headers=JSON)
                statuses[answer.status_code] += 1
                if len(answer.content) > 64 << 10:
                    statuses[-len(answer.content)] += 1

    attackers = [asyncio.create_task(attack(body)) for body in bad_megabytes()]
    report = await run_load(load)
    ended.set()
    await asyncio.gather(*attackers)
    return report, statuses


JSON = {"Content-Type": "application/json"}


def bad_megabytes() -> list[bytes]:
    """Four kinds of a megabyte: many faults, long faults, brackets, and numbers without end."""
    faults = {"messages": [{"role": "me", "content": [{"type": 1}] * 3}] * 14_000}
    long = {"messages": [{"role": "x" * 900, "content": 5}] * 1050}
    digits = b'{"messages": [' + b"1" * 1_000_000 + b"]}"
    brackets = b'{"messages": ' + b"[" * 1_000_000
    return [json.dumps(one).encode()[: 1 << 20] for one in (faults, long)] + [digits, brackets]


def keys(setting: Setting) -> Json:
    """Many requests with a key; beside them some without, and some with a wrong one."""
    with running(setting.model, "--api-key", "first", "--api-key", "second") as worker:
        pids = worker.ready().process.pid, worker.model_pid()
        load = Load(worker.url, 500, 32, tokens=2, prompts=FEW, plain=True, key="first")
        asyncio.run(run_load(load))
        before = sum(map(anonymous_bytes, pids))
        again = Load(**{**vars(load), "requests": setting.requests, "key": "second", "seed": 2})
        report, statuses = asyncio.run(_beside_strangers(again))
        grown = sum(map(anonymous_bytes, pids)) / before
    found = {**_figures(report), "strangers": dict(statuses), "memory": round(grown, 3)}
    setting.wrong += report.wrong
    setting.hold("statuses of strangers", set(statuses) == {401}, statuses)
    setting.hold("health, milliseconds", report.health_ms(1) < HEALTH_MS, found["health_ms"])
    setting.hold("memory", grown < GROWN, grown)
    return found


async def _beside_strangers(load: Load) -> tuple[Report, Counter[int]]:
    statuses: Counter[int] = Counter()
    ended = asyncio.Event()

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=load.url, trust_env=False, timeout=PATIENCE) as client:
            while not ended.is_set():
                for key in ({}, {"Authorization": "Bearer secon"}, {"Authorization": "Basic first"}):
                    answer = await client.post(
                        "/execute", json=request("stranger", max_tokens=4), headers=key
                    )
                    statuses[answer.status_code] += 1
                await asyncio.sleep(0.1)

    asking = asyncio.create_task(ask())
    report = await run_load(load)
    ended.set()
    await asking
    return report, statuses


def _figures(report: Report) -> Json:
    said = report.summary()
    return {key: said[key] for key in ("requests", "seconds", "statuses", "ends", "health_ms", "wrong")}


def _end_of(answer: httpx.Response) -> str:
    kinds = [one for one in ("end", "error") if f'"type":"{one}"' in answer.text]
    return kinds[0] if kinds else f"status {answer.status_code}" if answer.status_code != 200 else "none"


async def _started(worker: RunningWorker, n: int) -> list[Json]:
    """The log's lines of jobs that were started, as soon as there are so many."""
    until = time.monotonic() + PATIENCE
    while len(found := [line for line in [*worker.log] if line["message"] == "job started"]) < n:
        if time.monotonic() > until:
            raise TimeoutError("no job is started")
        await asyncio.sleep(0.01)
    return found


async def _watch(url: str, report: Report, enough: Callable[[list[str]], bool]) -> list[str]:
    """Ask for health, and note how long it took, until the states seen are enough; those, without repeats."""
    seen: list[str] = []
    until = time.monotonic() + PATIENCE
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE) as client:
        while not (seen and enough(seen)):
            if time.monotonic() > until:
                raise TimeoutError(f"health was {seen}")
            began = time.monotonic()
            status = (await client.get("/health")).json()["status"]
            report.health.append(time.monotonic() - began)
            if seen[-1:] != [status]:
                seen.append(status)
            await asyncio.sleep(0.02)
    return seen


async def _until_healthy(url: str) -> None:
    """Of a worker whose log nobody reads: until it listens and has its model."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            await _watch(url, Report(), lambda seen: seen[-1] == "healthy")
            return
        await asyncio.sleep(0.1)
    raise TimeoutError("the worker does not listen")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


SCENARIOS: dict[str, Callable[[Setting], Json]] = {
    **{"stopped": stopped, "killed": killed, "full-disk": full_disk, "megabytes": megabytes, "keys": keys}
}


def main() -> int:
    """Run what the command line asks for, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS], help="only this one")
    parser.add_argument("--requests", type=int, default=10_000, help="with keys")
    parser.add_argument("--model", type=Path, help="else a small one, made from a seed")
    asked = parser.parse_args()
    figures: Json = {}
    with tempfile.TemporaryDirectory() as folder:
        small = {"width": 64, "n_heads": 2, "ffn": 128, "n_layers": 2, "vocab": 4096}
        model = asked.model or make_seeded(Path(folder) / "model.gguf", **small).path
        setting = Setting(model, asked.requests)
        for name in asked.scenario or SCENARIOS:
            figures[name] = SCENARIOS[name](setting)
            print(name, json.dumps(figures[name]), flush=True)
    for sentence in setting.wrong[:20]:
        print(sentence, file=sys.stderr)
    return int(bool(setting.wrong))


if __name__ == "__main__":
    sys.exit(main())
