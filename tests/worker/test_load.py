"""Many clients at once: every job once, none mixed up, health throughout, memory flat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_ckpt.making.seeded_model import make_seeded
from tests.draws import draws
from tests.worker.running_worker import RunningWorker, running
from tools.worker_load import PROMPTS, Load, Outcome, Report, anonymous_bytes, check_log, run_load

Record = Callable[[str, object], None]


def grown(worker: RunningWorker, load: Load, warm_up: Load) -> tuple[Report, float]:
    """What a load did, and the memory of both processes at its end, in parts of that after a warm-up."""
    pids = worker.process.pid, worker.model_pid()
    asyncio.run(run_load(warm_up))
    before = sum(map(anonymous_bytes, pids))
    report = asyncio.run(run_load(load))
    return report, sum(map(anonymous_bytes, pids)) / before


def test_64_clients_and_500_requests(tmp_path: Path, record_testsuite_property: Record) -> None:
    """A third hang up in the middle, a tenth are malformed; the queue is a little too small for all.

    The model has two narrow layers and few tokens: what is tried is the worker.
    """
    model = make_seeded(tmp_path / "model.gguf", width=64, n_heads=2, ffn=128, n_layers=2, vocab=4096).path
    with running(model, "--queue-size", "56") as worker:
        url = worker.ready().url
        load = Load(url, requests=500, clients=64, tokens=4, prompts=PROMPTS[:3])
        report, memory = grown(worker, load, replace(load, requests=64, seed=1))
        assert worker.stop() == 0
        worker.end()
    record_testsuite_property("load", json.dumps(report.summary() | {"memory": memory}))
    assert report.wrong + check_log(report.outcomes, worker.log) == []
    figures = report.summary()
    assert figures["kinds"] == {"well": 283, "hang up": 167, "malformed": 50}
    assert figures["statuses"] == {200: 450, 400: 50} and report.refused > 0
    assert len(report.health) > 100 and report.health_ms(0.99) < 500
    assert memory < 1.05


def test_memory_stays_flat(reciter: RunningWorker, record_testsuite_property: Record) -> None:
    """A bounded form of `tools/worker_load.py --requests 10000 --plain`."""
    requests = draws(400, 1000)
    mix: dict[str, Any] = {"clients": 8, "tokens": 2, "plain": True, "prompts": ("bcd", "h", "c")}
    load = Load(reciter.url, requests=requests, **mix)
    report, memory = grown(reciter, load, Load(reciter.url, requests=300, seed=1, **mix))
    record_testsuite_property("memory", memory)
    assert report.wrong == [] and len(report.outcomes) == requests
    assert memory < 1.02


def test_the_judge_sees_what_is_wrong(reciter: RunningWorker) -> None:
    """A text of another job, a second terminal event, a lost one: each is a sentence."""
    load = Load(reciter.url, requests=4, clients=2, tokens=2, plain=True, seed=2, prompts=("a",))
    report = asyncio.run(run_load(load))
    reciter.logged("job ended", job_id=report.outcomes[-1].job_id)
    first = report.outcomes[0]
    ended = [line for line in reciter.log if line["message"] == "job ended"]
    assert check_log(report.outcomes, ended) == []
    assert len(check_log([first], [*ended, *ended])) == 1
    assert len(check_log([first], [])) == 1
    assert len(check_log([Outcome(first.job_id, "well", 503)], ended)) == 1
