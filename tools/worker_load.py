"""Load a worker: many clients at once, some hang up in the middle, some send nonsense.

    python tools/worker_load.py --requests 500 --clients 64          the mix of the tests
    python tools/worker_load.py --requests 10000 --clients 8 --plain   memory over ten thousand requests

Every job's text is held against the same request run alone before; every terminal event is counted,
for a client that hung up in the worker's log; health is asked all the while. The exit code is 1 when
something is not as it should be. What a worker does when things go wrong: `tools/worker_scenarios.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from reference_dumps import embedded_model

__all__ = ["PROMPTS", "Load", "Outcome", "Report", "anonymous_bytes", "check_log", "run_load"]

Json = dict[str, Any]
PROMPTS = ("Hello", "In the beginning", "And God said, Let there be", "Jesus", "The way of the earth")
BEFORE_ANOTHER_TRY = 0.1  # seconds
NEVER_ENDED = 1500  # tokens of one who hangs up: far more than are made before the worker hears of it
MALFORMED: tuple[Json, ...] = ({"max_tokens": 0}, {"prompt": ""}, {"temperature": "hot"}, {"stop": [""]})


@dataclass(frozen=True)
class Load:
    """What to do to a worker.

    Attributes:
        url: its address.
        requests: how many.
        clients: how many at once.
        tokens: the most that a job asks for.
        plain: nobody hangs up and nothing is malformed.
        seed: of the mix.
        prompts: what is continued.
        key: sent with every request but those for health, where the worker wants one.
    """

    url: str
    requests: int = 500
    clients: int = 64
    tokens: int = 8
    plain: bool = False
    seed: int = 0
    prompts: tuple[str, ...] = PROMPTS
    key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """What shows the key."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


@dataclass(frozen=True)
class Outcome:
    """What came of a request.

    Attributes:
        job_id: whose.
        kind: "well", "hang up" or "malformed".
        status: of the answer.
        events: those that arrived.
    """

    job_id: str
    kind: str
    status: int
    events: tuple[Json, ...] = ()


@dataclass
class Report:
    """What came of all of them.

    Attributes:
        outcomes: one for each request.
        wrong: a sentence for each thing that is not as it should be.
        health: seconds until each health check was answered.
        refused: answers that the queue is full; the request was sent again.
        seconds: how long all of it took.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    refused: int = 0
    seconds: float = 0.0

    def health_ms(self, share: float) -> float:
        """Milliseconds within which that share of the health checks was answered."""
        ranked = sorted(self.health)
        return 1000 * ranked[min(len(ranked) - 1, int(share * len(ranked)))]

    def summary(self) -> Json:
        """The figures."""
        ends = Counter(
            str(one.events[-1].get("stop_reason", one.events[-1].get("code", "none")))
            for one in self.outcomes
            if one.events and one.kind == "well"
        )
        return {
            "requests": len(self.outcomes),
            "seconds": round(self.seconds, 1),
            "kinds": dict(Counter(one.kind for one in self.outcomes)),
            "statuses": dict(Counter(one.status for one in self.outcomes)),
            "refused_for_a_full_queue": self.refused,
            "ends": dict(ends),
            "health_checks": len(self.health),
            "health_ms": {f"p{share:g}": round(self.health_ms(share / 100), 2) for share in (50, 99, 100)},
            "wrong": len(self.wrong),
        }


async def run_load(load: Load) -> Report:
    """Send everything; hold every text against a lone run of the same request."""
    report, mix = Report(), random.Random(load.seed)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=load.clients)
    async with httpx.AsyncClient(
        base_url=load.url, trust_env=False, timeout=120, limits=limits, headers=load.headers
    ) as client:
        kinds = _kinds(load)
        mix.shuffle(kinds)
        bodies = [(kind, _body(load, number, kind, mix)) for number, kind in enumerate(kinds)]
        alone = await _alone(client, load, [body for kind, body in bodies if kind != "malformed"])
        asking = asyncio.create_task(_ask_for_health(load.url, report))
        began, waiting = time.monotonic(), iter(bodies)

        async def one_client() -> None:
            for kind, body in waiting:
                while (outcome := await _send(client, kind, body)).status == 503:
                    report.refused += 1
                    await asyncio.sleep(BEFORE_ANOTHER_TRY)
                report.outcomes.append(outcome)
                report.wrong += _judge(outcome, body, alone)

        await asyncio.gather(*(one_client() for _ in range(load.clients)))
        report.seconds = time.monotonic() - began
        asking.cancel()
        await _until_idle(client)
    return report


def _kinds(load: Load) -> list[str]:
    """A third hang up, a tenth are malformed."""
    hang_up, malformed = (0, 0) if load.plain else (round(load.requests / 3), load.requests // 10)
    well = load.requests - hang_up - malformed
    return ["well"] * well + ["hang up"] * hang_up + ["malformed"] * malformed


def _body(load: Load, number: int, kind: str, mix: random.Random) -> Json:
    """A request of the mix; there are few enough different ones to run each alone."""
    body: Json = {"job_id": f"load-{load.seed}-{number}", "prompt": mix.choice(load.prompts)}
    body |= {"seed": mix.randrange(2), "temperature": mix.choice((0, 1.0))}
    body["max_tokens"] = mix.choice((1, load.tokens // 2 or 1, load.tokens))
    if kind == "hang up":
        body["max_tokens"] = NEVER_ENDED
    return body | (mix.choice(MALFORMED) if kind == "malformed" else {})


def _key(body: Json) -> str:
    return json.dumps([body["prompt"], body["seed"] if body["temperature"] else 0, body["temperature"]])


async def _alone(client: httpx.AsyncClient, load: Load, bodies: Sequence[Json]) -> dict[str, list[str]]:
    """The token events of each kind of request, run alone, as far as they are compared."""
    texts: dict[str, list[str]] = {}
    for body in bodies:
        if _key(body) not in texts:
            lone = await _send(client, "well", {**body, "job_id": "alone", "max_tokens": load.tokens + 4})
            assert lone.status == 200, lone
            texts[_key(body)] = [event["t"] for event in lone.events if event["type"] == "token"]
    return texts


async def _send(client: httpx.AsyncClient, kind: str, body: Json) -> Outcome:
    """One request; one that hangs up does so after its first or second token."""
    events: list[Json] = []
    async with client.stream("POST", "/execute", json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return Outcome(body["job_id"], kind, answer.status_code)
        async for event in _events(answer):
            events.append(event)
            seen = sum(one["type"] == "token" for one in events)
            if kind == "hang up" and seen > len(body["job_id"]) % 2:
                break
    return Outcome(body["job_id"], kind, 200, tuple(events))


async def _events(answer: httpx.Response) -> AsyncIterator[Json]:
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def anonymous_bytes(pid: int) -> int:
    """The memory of a process that is no file's: pages of the mapped model come and go by themselves."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    (anonymous,) = (line for line in lines if line.startswith("RssAnon:"))
    return 1024 * int(anonymous.split()[1])


def _judge(outcome: Outcome, body: Json, alone: dict[str, list[str]]) -> list[str]:
    """What is wrong with an outcome by itself; the log is looked at later."""
    kinds = [event["type"] for event in outcome.events]
    terminal = sum(kind in ("end", "error") for kind in kinds)
    texts = [event["t"] for event in outcome.events if event["type"] == "token"]
    wrong = []
    if outcome.kind == "malformed":
        return [] if outcome.status == 400 else [f"{outcome.job_id}: malformed, answered {outcome.status}"]
    if outcome.status != 200 or kinds[:1] != ["started"] or outcome.events[0]["job_id"] != outcome.job_id:
        wrong.append(f"{outcome.job_id}: answered {outcome.status}, began {outcome.events[:1]}")
    if terminal != (outcome.kind == "well"):
        wrong.append(f"{outcome.job_id}: {terminal} terminal events, {outcome.kind}")
    if texts != alone[_key(body)][: len(texts)]:
        wrong.append(f"{outcome.job_id}: said {texts}, alone {alone[_key(body)]}")
    if outcome.kind == "well" and (
        kinds[-1] != "end" or outcome.events[-1]["tokens_out"] != body["max_tokens"]
    ):
        wrong.append(f"{outcome.job_id}: ended with {outcome.events[-1]}")
    return wrong


async def _until_idle(client: httpx.AsyncClient) -> None:
    """Wait for the last ones who hung up: their jobs, and their memory, last until the next token."""
    idle = ("llama_ckpt_worker_running 0.0\n", "llama_ckpt_worker_queue_length 0.0\n")
    text = ""
    while not all(line in text for line in idle):
        await asyncio.sleep(0.02)
        text = (await client.get("/metrics")).text


async def _ask_for_health(url: str, report: Report) -> None:
    """Every 20 milliseconds, over a connection of its own."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        while True:
            began = time.monotonic()
            answer = await client.get("/health")
            report.health.append(time.monotonic() - began)
            if answer.status_code != 200:
                report.wrong.append(f"health answered {answer.status_code}")
            await asyncio.sleep(0.02)


def check_log(outcomes: Sequence[Outcome], log: Sequence[Json]) -> list[str]:
    """Hold the worker's log against the outcomes: one terminal event a job, none for what was refused."""
    ended = Counter(line["job_id"] for line in log if line["message"] == "job ended")
    how = {line["job_id"]: line["outcome"] for line in log if line["message"] == "job ended"}
    wrong = []
    for one in outcomes:
        if ended[one.job_id] != (one.status == 200):
            wrong.append(
                f"{one.job_id}: answered {one.status}, {ended[one.job_id]} terminal events in the log"
            )
        elif one.status == 200 and one.kind == "hang up" and how[one.job_id] != "CANCELLED":
            wrong.append(f"{one.job_id}: hung up, ended with {how[one.job_id]}")
    return wrong


def main() -> None:
    """Start a worker, load it, print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--queue-size", type=int, default=64)
    parser.add_argument("--plain", action="store_true", help="nobody hangs up, nothing is malformed")
    parser.add_argument("--model", type=Path, default=embedded_model())
    options = parser.parse_args()
    command = [sys.executable, "-m", "llama_ckpt.worker", "--worker-id", "load", "--port", "0"]
    command += ["--callback-url", "http://localhost:9999", "--model", str(options.model)]
    command += ["--queue-size", str(options.queue_size)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        sys.exit(_measure(process, options))
    finally:
        process.kill()
        process.wait()


def _measure(process: subprocess.Popen[str], options: argparse.Namespace) -> int:
    assert process.stderr is not None
    log = [json.loads(process.stderr.readline())]
    while log[-1]["message"] != "ready":
        log.append(json.loads(process.stderr.readline()))
    threading.Thread(target=lambda: log.extend(map(json.loads, process.stderr or ())), daemon=True).start()
    url = f"http://127.0.0.1:{log[0]['port']}"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pids = [process.pid, *map(int, children)]

    def memory() -> list[int]:
        return [anonymous_bytes(pid) // 1000 for pid in pids]

    mix = {"clients": options.clients, "tokens": options.tokens, "plain": options.plain}
    asyncio.run(run_load(Load(url, requests=min(500, options.requests), seed=1, **mix)))
    warm = memory()
    report = asyncio.run(run_load(Load(url, requests=options.requests, seed=2, **mix)))
    end = memory()
    process.terminate()
    code = process.wait(60)
    report.wrong += check_log(report.outcomes, log)
    grown = sum(end) / sum(warm) - 1
    figures = {
        **report.summary(),
        "exit_code": code,
        "warm_kb": warm,
        "end_kb": end,
        "grown": round(grown, 4),
    }
    print(json.dumps(figures, indent=1))
    for sentence in report.wrong[:20]:
        print(sentence)
    return int(bool(report.wrong) or code != 0 or grown > 0.05)


if __name__ == "__main__":
    main()
