"""GET /metrics: what is counted, and that it adds up."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.worker.running_worker import RunningWorker, execute, request

PREFIX = "llama_ckpt_worker_"


def read(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """Every sample: its name without the prefix, and its labels' values."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.text)
    samples = [sample for family in families for sample in family.samples]
    return {(s.name.removeprefix(PREFIX), *s.labels.values()): s.value for s in samples}


def test_a_job_is_counted(reciter_client: httpx.Client) -> None:
    before = read(reciter_client)
    execute(reciter_client, request("counted", prompt="a", max_tokens=6))
    execute(reciter_client, request("to its end", prompt="a", max_tokens=100))
    execute(reciter_client, request("failed", prompt="n"))
    reciter_client.post("/execute", json={})
    reciter_client.get("/nowhere/at/all")
    after = read(reciter_client)
    grown = {key: value - before.get(key, 0) for key, value in after.items()}
    assert grown["jobs_total", "MAX_TOKENS"] == grown["jobs_total", "EOS"] == 1
    assert grown["jobs_total", "INFERENCE_FAILED"] == 1
    assert grown["requests_total", "/execute", "200"] == 3
    assert grown["requests_total", "/execute", "400"] == grown["requests_total", "other", "404"] == 1
    assert grown["generated_tokens_total",] == 6 + 17
    assert grown["prompt_tokens_total",] == 3 + 3 + 3
    assert grown["first_token_seconds_count",] == 2 and grown["queue_wait_seconds_count",] == 3
    assert grown["between_tokens_seconds_count",] == 5 + 16
    assert after["queue_length",] == after["running",] == 0


def test_memory_is_told(worker: RunningWorker, client: httpx.Client) -> None:
    samples = read(client)
    assert samples["vram_bytes",] == client.get("/health").json()["vram_bytes"]
    assert samples["resident_bytes",] > 100e6
    assert abs(samples["resident_bytes",] - sum(worker.resident_bytes())) < 50e6


def test_a_refusal_and_what_waits_are_counted(tight: RunningWorker) -> None:
    with tight.client() as client, tight.client() as second, tight.client() as third:
        before = read(client)
        with client.stream("POST", "/execute", json=request("runs", max_tokens=2000)):
            with second.stream("POST", "/execute", json=request("waits")):
                assert third.post("/execute", json=request("refused")).status_code == 503
                samples = read(third)
                assert samples["queue_length",] == samples["running",] == 1
                third.post("/cancel", json={"job_id": "runs"})
        assert read(third)["jobs_refused_total",] == before["jobs_refused_total",] + 1
