"""A model's process that is stuck: within seconds health says so; it is killed, and started anew if asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from llama_ckpt.worker.events import Error
from llama_ckpt.worker.job_queue import JobQueue
from llama_ckpt.worker.jobs import Job
from llama_ckpt.worker.model_process import _beat
from llama_ckpt.worker.telemetry import Telemetry
from llama_ckpt.worker.watchdog import LONG, NEVER, TURN, Watchdog
from tests.worker.running_worker import RunningWorker, execute, request, running


def looks(
    heard: list[int], unobeyed: list[bool], patience: float = 2.0, worked: list[int] | None = None
) -> list[str | None]:
    """What each look at such a process says; it computes whenever it is heard, where no more is said."""
    turn = iter(zip(heard, worked or heard, unobeyed, strict=True))
    now: list[tuple[int, int, bool]] = []
    dog = Watchdog(lambda: now[-1][0], lambda: now[-1][1], lambda: now[-1][2], lambda _why: None, patience)
    said = []
    for one in turn:
        now.append(one)
        said.append(dog.look())
    return said


def test_silence_after_a_cancel_is_stuck_within_the_patience() -> None:
    said = looks([1, 2, 3] + [3] * 9, [False, False] + [True] * 10)
    first = next(i for i, one in enumerate(said) if one)
    assert (first - 2) * TURN == 2.0 and "did not end a cancelled job" in str(said[first])


def test_a_long_prompt_that_nobody_cancels_may_take_its_time() -> None:
    turns = int(LONG * 2.0 / TURN)
    assert not any(looks([1] * turns, [False] * turns))
    assert (
        looks([1] * (turns + 1), [False] * (turns + 1))[-1] == "the model's process was silent for 12 seconds"
    )


def test_one_that_says_that_it_runs_and_never_obeys() -> None:
    turns = int(NEVER * 2.0 / TURN)
    said = looks(list(range(turns)), [True] * turns)
    assert not any(said[:-1]) and said[-1] == "a cancelled job did not end for 48 seconds"


def test_one_that_says_that_it_runs_and_computes_nothing() -> None:
    """Threads that wait for each other for ever; without a cancel nobody knows better."""
    said = looks(list(range(12)), [False, False] + [True] * 10, worked=[1, 2] + [2] * 10)
    first = next(i for i, one in enumerate(said) if one)
    assert (first - 1) * TURN == 2.0 and "computed nothing for 2 seconds" in str(said[first])
    assert not any(looks(list(range(90)), [False] * 90, worked=[1] * 90))


def test_a_beat_says_whether_anything_is_computed() -> None:
    said: list[bool] = []

    class Told:
        def send(self, _kind: str, *, works: bool) -> None:
            said.append(works)
            if len(said) == 2:
                raise SystemExit

    def beat() -> None:
        with contextlib.suppress(SystemExit):
            _beat(Told())  # type: ignore[arg-type]

    for busy in (False, True):
        said.clear()
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        while thread.is_alive():
            if busy:
                sum(range(1000))
            else:
                thread.join(0.2)
        assert said == [busy, busy]


def test_a_cancel_that_is_obeyed_late_is_forgiven() -> None:
    assert not any(looks([1, 1, 1, 2, 3, 4, 5, 5, 5, 6], [True, True, True, True, False, False] + [True] * 4))


def states(client: httpx.Client, wanted: str, within: float) -> float:
    """How long it took until health had that status; every answer comes at once."""
    began = time.monotonic()
    while time.monotonic() - began < within:
        asked = time.monotonic()
        status = client.get("/health").json()["status"]
        assert time.monotonic() - asked < 2.0
        if status == wanted:
            return time.monotonic() - began
        time.sleep(0.05)
    raise AssertionError(f"no {wanted} within {within} s, but {status}")


def stopped(worker: RunningWorker, client: httpx.Client, done: list[str]) -> list[threading.Thread]:
    """A job that runs, a second one that waits, and the model's process stopped."""

    def ask(name: str) -> None:
        with worker.client() as own:
            answer = own.post("/execute", json=request(name, max_tokens=2000))
            done.append("error" if "event: error" in answer.text else str(answer.status_code))

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("runs", "waits")]
    threads[0].start()
    worker.logged("job started", job_id="runs")
    os.kill(worker.model_pid(), signal.SIGSTOP)
    threads[1].start()
    return threads


def test_a_stopped_process_is_told_of_and_killed(embedded_model: Path) -> None:
    done: list[str] = []
    with running(embedded_model, "--watchdog", "1") as worker, worker.ready().client() as client:
        pid = worker.model_pid()
        threads = stopped(worker, client, done)
        client.post("/cancel", json={"job_id": "runs"})
        assert states(client, "faulted", 10) < 10
        for thread in threads:
            thread.join(20)
        # What waits cannot even be tokenized there: it is answered as well, once the process is gone.
        assert sorted(done) == ["503", "error"]
        assert worker.logged("job ended", job_id="runs")["outcome"] == "INFERENCE_FAILED"
        assert not Path(f"/proc/{pid}").exists()
        assert client.post("/execute", json=request("later")).status_code == 503


def test_it_is_started_anew_where_that_is_asked_for(reciter_model: Path) -> None:
    with running(reciter_model, "--watchdog", "1", "--restart") as worker, worker.ready().client() as client:
        before = execute(client, request("one", prompt="a"))
        os.kill(worker.model_pid(), signal.SIGKILL)
        worker.logged("the model is loaded again", restarts=1)
        states(client, "healthy", 30)
        assert execute(client, request("two", prompt="a"))[-1]["type"] == before[-1]["type"] == "end"


def test_shutdown_lets_jobs_end_where_it_is_asked_to(embedded_model: Path) -> None:
    """Without --drain they are cancelled at once: tests/worker/test_stop.py."""
    with running(embedded_model, "--grace", "30", "--drain") as worker, worker.ready().client() as client:
        found: list[str] = []

        def ask() -> None:
            found.append(execute(client, request("goes-on", max_tokens=40))[-1]["stop_reason"])

        thread = threading.Thread(target=ask)
        thread.start()
        worker.logged("job started", job_id="goes-on")
        assert worker.stop() == 0
        thread.join(20)
    assert found == ["MAX_TOKENS"] and worker.logged("draining")["jobs"] == 1


class Idle:
    """A model that never answers."""

    def generate(self, job: int, token_ids: Sequence[int], **_how: object) -> None:
        pass

    def cancel(self, job: int) -> None:
        pass


def test_a_job_waits_no_longer_than_it_may_and_a_cancel_stays_unobeyed() -> None:
    async def wait() -> None:
        queue = JobQueue(Idle(), model="m", size=4, timeout=60, telemetry=Telemetry(), waiting=0.05)
        jobs = [Job(number, f"j{number}", None, 1, {"seed": 1}, (), owner=number) for number in range(2)]
        for job in jobs:
            queue.admit(job)
            queue.enqueue(job)
        assert not queue.unobeyed and not queue.cancel("j0", "request", owner=1)
        await asyncio.sleep(0.15)
        assert isinstance(jobs[1].terminal, Error) and jobs[1].terminal.code == "TIMEOUT"
        assert jobs[1].terminal.message == "the job waited for its limit of 0.05 seconds"
        assert jobs[0].terminal is None and queue.cancel("j0", "request", owner=0) and queue.unobeyed
        queue.abandon(None, "")

    asyncio.run(wait())
