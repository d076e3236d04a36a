"""POST /execute: every event of a job that goes well, when it comes and what it says."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from pathlib import Path

import httpx
import pytest

import llama_ckpt
from llama_ckpt.dumps.reference import open_dumps
from reference_dumps import dump_folder
from tests.worker.reciting_file import RECITED
from tests.worker.running_worker import Json, RunningWorker, execute, parsed, request, text_of


def continuation(name: str) -> tuple[str, str]:
    """A recorded prompt, and llama.cpp's greedy text after it."""
    entry = next(one for one in open_dumps(dump_folder("f32")).entries if one.name == name)
    assert entry.prompt is not None and entry.continuation is not None
    return entry.prompt, entry.continuation.text


@pytest.mark.parametrize("name", ["hello", "eight-tokens", "two-tokens"])
def test_greedy_text_is_llama_cpps(client: httpx.Client, name: str) -> None:
    prompt, text = continuation(name)
    events = execute(client, request(f"greedy-{name}", prompt=prompt, max_tokens=64))
    assert text_of(events) == text


def test_events_in_order_and_complete(client: httpx.Client) -> None:
    events = execute(client, request("order", max_tokens=8))
    kinds = [event["type"] for event in events]
    assert kinds == ["started", *["token"] * 8, "metrics", "end"]
    started, *tokens, metrics, end = events
    assert set(started) == {"type", "job_id", "model", "started_at"}
    assert (started["job_id"], started["model"]) == ("order", "llama_ckpt tiny-32l")
    assert abs(datetime.fromisoformat(started["started_at"]).timestamp() - time.time()) < 60
    assert [set(event) for event in tokens] == [{"type", "t", "i"}] * 8
    assert [event["i"] for event in tokens] == list(range(8))
    assert set(metrics) == {"type", "tokens_per_sec", "vram_bytes"} and metrics["tokens_per_sec"] > 0
    assert set(end) == {"type", "tokens_out", "decode_time_ms", "stop_reason"}
    assert (end["tokens_out"], end["stop_reason"]) == (8, "MAX_TOKENS")


def test_it_is_a_stream_of_server_sent_events(client: httpx.Client) -> None:
    with client.stream("POST", "/execute", json=request("sse", max_tokens=1)) as answer:
        raw = answer.read()
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    first, *_, rest = raw.split(b"\n\n")
    assert first.startswith(b'event: started\ndata: {"type":"started","job_id":"sse"') and rest == b""


def test_each_event_is_sent_when_it_happens(client: httpx.Client) -> None:
    arrivals: list[float] = []
    events = execute(client, request("when", max_tokens=60), then=lambda _: arrivals.append(time.monotonic()))
    end = events[-1]
    spread = arrivals[-1] - arrivals[0]
    # All in one piece at the end would arrive within a millisecond or two.
    assert spread > 0.5 * end["decode_time_ms"] / 1000
    halfway = sum(at - arrivals[0] < spread / 2 for at in arrivals)
    assert 0.2 * len(arrivals) < halfway < 0.8 * len(arrivals)


def test_metrics_come_at_intervals(client: httpx.Client) -> None:
    """One a second, so that of a long job the second one comes after two."""
    began, tokens, metrics = time.monotonic(), 0, list[Json]()
    with client.stream("POST", "/execute", json=request("metrics", max_tokens=2000)) as answer:
        for event in parsed(answer.iter_lines()):
            tokens += event["type"] == "token"
            metrics += [event] * (event["type"] == "metrics")
            if len(metrics) == 2:
                break
    seconds = time.monotonic() - began
    assert 1.9 < seconds < 10
    assert metrics[-1]["tokens_per_sec"] == pytest.approx(tokens / seconds, rel=0.2)
    assert metrics[-1]["vram_bytes"] > 1e6


def test_text_is_held_until_its_characters_are_whole(reciter_client: httpx.Client) -> None:
    events = execute(reciter_client, request("whole", prompt="a", max_tokens=6))
    tokens = [(event["t"], event["i"]) for event in events if event["type"] == "token"]
    assert tokens == [("🦙", 0), ("b", 1), ("c", 2)]
    assert events[-1]["tokens_out"] == 6


def test_half_a_character_at_the_end_is_replaced(reciter_client: httpx.Client) -> None:
    events = execute(reciter_client, request("half", prompt="a", max_tokens=3))
    assert text_of(events) == "\N{REPLACEMENT CHARACTER}"
    assert events[-1]["stop_reason"] == "MAX_TOKENS"


def test_eos(reciter_client: httpx.Client) -> None:
    events = execute(reciter_client, request("eos", prompt="a", max_tokens=100))
    assert text_of(events) == RECITED
    assert (events[-1]["stop_reason"], events[-1]["tokens_out"]) == ("EOS", len(RECITED) + 3 + 1)


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        (["efg"], "🦙bcd"),
        (["zz", "d", "de"], "🦙bc"),
        (["🦙"], ""),
        (["b", "🦙b"], ""),
        (["lm", "x"], "🦙bcdefghijk"),
    ],
)
def test_stop_sequence(reciter_client: httpx.Client, stop: list[str], shown: str) -> None:
    events = execute(reciter_client, request("stop", prompt="a", max_tokens=100, stop=stop))
    assert text_of(events) == shown
    assert events[-1]["stop_reason"] == "STOP_SEQUENCE"
    assert events[-1]["stop_sequence_matched"] in stop


def test_what_may_begin_a_stop_sequence_is_held(reciter_client: httpx.Client) -> None:
    events = execute(reciter_client, request("held", prompt="a", max_tokens=9, stop=["bcdx", "gz"]))
    assert [event["t"] for event in events if event["type"] == "token"] == ["🦙", "bcde", "f"]


SAMPLED: Json = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2}


@pytest.fixture(scope="module")
def library_text(embedded_model: Path) -> str:
    """What the library draws for `SAMPLED` with seed 7; the worker has no sampling of its own."""
    model = llama_ckpt.load(embedded_model, device="cpu")
    return "".join(llama_ckpt.generate(model, "In the beginning", 24, seed=7, **SAMPLED))


def test_sampling_is_the_ladders(client: httpx.Client, library_text: str) -> None:
    body = request("sampled", prompt="In the beginning", max_tokens=24, seed=7, **SAMPLED)
    assert text_of(execute(client, body)) == library_text


def test_the_same_seed_on_an_idle_and_on_a_loaded_worker(
    worker: RunningWorker, client: httpx.Client, library_text: str
) -> None:
    texts: dict[str, str] = {}

    def run(job_id: str, seed: int) -> None:
        with worker.client() as own:
            body = request(job_id, prompt="In the beginning", max_tokens=24, seed=seed, **SAMPLED)
            texts[job_id] = text_of(execute(own, body))

    seeds = {f"loaded-{number}": 7 if number % 2 else number for number in range(6)}
    threads = [threading.Thread(target=run, args=pair) for pair in seeds.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same = {texts[job_id] for job_id, seed in seeds.items() if seed == 7}
    assert same == {library_text}
    assert len(set(texts.values())) == 4


def test_without_a_seed_one_is_drawn_and_logged(worker: RunningWorker, client: httpx.Client) -> None:
    drawn = {"prompt": "In the beginning", "max_tokens": 12, "temperature": 1.0}
    text = text_of(execute(client, request("unseeded", **drawn)))
    seed = worker.logged("job started", job_id="unseeded")["seed"]
    assert text_of(execute(client, request("unseeded-again", seed=seed, **drawn))) == text
    assert worker.logged("job started", job_id="unseeded-again")["seed"] == seed
    execute(client, request("unseeded-other", **drawn))
    assert worker.logged("job started", job_id="unseeded-other")["seed"] != seed


@pytest.mark.parametrize("seed", [2**32 + 7, 7 - 2**32, 7.0])
def test_seeds_beyond_32_bits_are_folded(client: httpx.Client, library_text: str, seed: float) -> None:
    body = request(f"seed-{seed}", prompt="In the beginning", max_tokens=24, seed=seed, **SAMPLED)
    assert text_of(execute(client, body)) == library_text


def test_the_default_temperature_draws(client: httpx.Client) -> None:
    body = {"prompt": "In the beginning", "max_tokens": 16}
    texts = {
        text_of(execute(client, {"job_id": f"default-{seed}", "seed": seed, **body})) for seed in range(3)
    }
    assert len(texts) == 3


def test_a_repetition_penalty_of_zero_is_off(client: httpx.Client) -> None:
    texts = [
        text_of(execute(client, request(f"penalty-{penalty}", max_tokens=24, repetition_penalty=penalty)))
        for penalty in (0, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("sampling"), [{"top_k": 1}, {"top_p": 0}, {"min_p": 1}, {"top_k": 2**60, "temperature": 0}]
)
def test_the_edges_of_sampling(client: httpx.Client, sampling: Json) -> None:
    body = request(f"edge-{sampling}", **({"temperature": 2, "seed": 1} | sampling))
    assert text_of(execute(client, body)) == text_of(execute(client, request("edge-greedy")))


def test_a_correlation_id_is_taken_over_or_made(worker: RunningWorker, client: httpx.Client) -> None:
    given = {"X-Correlation-ID": "abc-123"}
    answer = client.post("/execute", json=request("correlated", max_tokens=1), headers=given)
    assert answer.headers["x-correlation-id"] == "abc-123"
    for message in ("job started", "job ended"):
        assert worker.logged(message, job_id="correlated")["correlation_id"] == "abc-123"
    assert worker.logged("request answered", correlation_id="abc-123")["status"] == 200
    made = [
        client.get("/health", headers=header).headers["x-correlation-id"]
        for header in ({}, {}, {"X-Correlation-ID": "a b\x7f"})
    ]
    assert len(set(made)) == 3 and all(len(one) == 32 for one in made)


def test_the_next_job_starts_when_one_has_ended(worker: RunningWorker) -> None:
    """First come, first served, one at a time: the log has their spans one after the other."""
    with worker.client() as client:
        opened = [
            client.stream("POST", "/execute", json=request(f"turn-{number}", max_tokens=5))
            for number in range(4)
        ]
        answers = [one.__enter__() for one in opened]
        for answer in answers:
            answer.read()
        for one in opened:
            one.__exit__(None, None, None)
    worker.logged("job ended", job_id="turn-3")
    lines = [line for line in worker.log if str(line.get("job_id", "")).startswith("turn-")]
    spans = [(line["message"], line["job_id"]) for line in lines]
    assert spans == [(m, f"turn-{number}") for number in range(4) for m in ("job started", "job ended")]
