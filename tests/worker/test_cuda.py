"""The worker on a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama_ckpt.dumps.reference import open_dumps
from reference_dumps import dump_folder
from tests.worker.running_worker import execute, request, running, text_of

pytestmark = pytest.mark.cuda
MIB = 1 << 20


def test_a_job_on_the_gpu(embedded_model: Path) -> None:
    entry = next(one for one in open_dumps(dump_folder("f32")).entries if one.name == "hello")
    assert entry.continuation is not None
    with running(embedded_model, "--device", "cuda") as worker, worker.ready().client() as client:
        health = client.get("/health").json()
        assert health["memory_type"] == "cuda" and health["vram_bytes"] > 11e6
        events = execute(client, request("gpu", max_tokens=64))
        assert text_of(events) == entry.continuation.text
        told = events[-2]  # torch gives cached memory back when it captures, so it may be less than before
        assert told["type"] == "metrics" and told["vram_bytes"] > 11e6
        assert client.get("/health").json()["vram_bytes"] == told["vram_bytes"]
        assert worker.stop() == 0


def test_auto_is_the_engine_on_the_gpu(embedded_model: Path) -> None:
    with running(embedded_model) as worker, worker.ready().client() as client:
        loaded = worker.logged("model loaded")
        assert loaded["computed_by"] == f"the engine in precision fast on {loaded['device']}"
        texts = {text_of(execute(client, request(f"same-{n}", temperature=1, seed=3))) for n in range(3)}
        assert len(texts) == 1


def test_out_of_memory(embedded_model: Path) -> None:
    """The rest of the device's memory is taken; the KV cache of 4,000 tokens has no room, a short one has."""
    with running(embedded_model, "--dtype", "float32") as worker, worker.ready().client() as client:
        execute(client, request("warm"))
        free, _ = torch.cuda.mem_get_info()
        taken = [torch.empty(max(0, free - 24 * MIB), dtype=torch.uint8, device="cuda")]
        events = execute(client, request("large", prompt="and " * 1900, max_tokens=2048))
        assert [event["type"] for event in events] == ["started", "error"]
        assert events[1]["code"] == "VRAM_OOM"
        taken.clear()
        torch.cuda.empty_cache()
        assert execute(client, request("small"))[-1]["stop_reason"] == "MAX_TOKENS"
        assert client.get("/health").status_code == 200
