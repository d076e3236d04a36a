"""Jobs that fail: each with one error event, and what the worker does next."""

from __future__ import annotations

import io
import json
import os
import resource
import select
import signal
from pathlib import Path

import httpx
import pytest
from gguf import GGUFValueType

from llama_ckpt.worker import model_process
from tests.gguf_files import write_llama
from tests.worker.running_worker import Json, RunningWorker, execute, parsed, request, running

TRIES = 40
"""Of jobs that have half a second: a busy machine may take longer for one token; then another is tried."""


def test_timeout(hurried: RunningWorker) -> None:
    """--job-timeout is half a second there: tokens until then, one error, and jobs go on."""
    with hurried.client() as client:
        for number in range(TRIES):
            events = execute(client, request(f"slow-{number}", max_tokens=1500))
            assert events[0]["type"] == "started"
            assert {key: events[-1][key] for key in ("type", "code")} == {"type": "error", "code": "TIMEOUT"}
            assert "0.5 seconds" in events[-1]["message"]
            assert hurried.logged("job ended", job_id=f"slow-{number}")["outcome"] == "TIMEOUT"
            assert len(hurried.ends_of(f"slow-{number}")) == 1
            if len(events) > 2:
                break
        assert len(events) > 2, "not a token before the time was up"
        for number in range(TRIES):
            last = execute(client, request(f"quick-{number}", max_tokens=1))[-1]
            if last["type"] == "end":
                break
            assert last["code"] == "TIMEOUT"
        assert last["stop_reason"] == "MAX_TOKENS"


def test_inference_failed(reciter: RunningWorker, reciter_client: httpx.Client) -> None:
    """The token of "n" is embedded as NaN there; a choice from NaN would be a token all the same."""
    events = execute(reciter_client, request("nan", prompt="n"))
    assert [event["type"] for event in events] == ["started", "error"]
    assert events[1]["code"] == "INFERENCE_FAILED" and "not finite" in events[1]["message"]
    assert execute(reciter_client, request("sound", prompt="a"))[-1]["type"] == "end"
    failed = reciter.logged("job ended", job_id="nan")
    assert (failed["outcome"], failed["level"]) == ("INFERENCE_FAILED", "error")
    assert "FloatingPointError" in reciter.logged("generation failed", job_id="nan")["trace"]


def test_out_of_memory(embedded_model: Path) -> None:
    """The model's process may grow by 24 MB, for a thread and a short job; 4,000 tokens take 65."""
    with running(embedded_model) as worker, worker.ready().client() as client:
        execute(client, request("warm"))
        pid = worker.model_pid()
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(pid, resource.RLIMIT_AS, (size + (24 << 20), resource.RLIM_INFINITY))
        events = execute(client, request("large", prompt="and " * 1900, max_tokens=2048))
        assert [event["type"] for event in events] == ["started", "error"]
        assert events[1]["code"] == "VRAM_OOM" and "memory" in events[1]["message"]
        last = execute(client, request("small"))[-1]
        assert last.get("stop_reason") == "MAX_TOKENS", last
        assert client.get("/health").status_code == 200
        check_the_model_goes_with(worker)


def check_the_model_goes_with(worker: RunningWorker) -> None:
    """A worker that is killed in the middle of a job: its model's standard input ends, and it with it."""
    with (
        worker.client() as client,
        client.stream("POST", "/execute", json=request("orphan", max_tokens=2000)) as answer,
    ):
        events = parsed(answer.iter_lines())  # kept: a dropped iterator hangs up
        assert next(events)["type"] == "started"
        model = os.pidfd_open(worker.model_pid())
        worker.process.kill()
        assert select.select([model], [], [], 20)[0], "the model's process is still there"
        os.close(model)


def test_the_models_process_is_killed(embedded_model: Path) -> None:
    with running(embedded_model) as worker, worker.ready().client() as client, worker.client() as other:
        with client.stream("POST", "/execute", json=request("running", max_tokens=2000)) as answer:
            events = parsed(answer.iter_lines())
            assert next(events)["type"] == "started"
            with other.stream("POST", "/execute", json=request("waiting")) as second:
                os.kill(worker.model_pid(), signal.SIGKILL)
                for last in (list(events)[-1], list(parsed(second.iter_lines()))[-1]):
                    assert (last["type"], last["code"]) == ("error", "INFERENCE_FAILED")
                    assert "signal 9" in last["message"]
        health = client.get("/health")
        assert health.status_code == 503
        assert health.json()["status"] == "faulted" and health.json()["model_loaded"] is False
        refusal = client.post("/execute", json=request("late"))
        assert refusal.status_code == 503 and "retry-after" not in refusal.headers
        assert client.post("/v1/completions", json={"prompt": "Hello"}).status_code == 503
        worker.logged("job ended", job_id="waiting")
        assert [len(worker.ends_of(job_id)) for job_id in ("running", "waiting", "late")] == [1, 1, 0]
        assert worker.stop() == 0


class Lines(io.StringIO):
    """What an engine sends, as messages."""

    def messages(self) -> list[Json]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.mark.parametrize(("asked", "told"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_what_computes_is_announced(embedded_model: Path, asked: str, told: str) -> None:
    sent = Lines()
    order = {"model": str(embedded_model), "device": "cpu", "dtype": asked, "max_context": None}
    model_process.load(order, model_process.Outbox(sent))
    assert sent.messages()[0]["computed_by"] == f"the layers in {told} on cpu"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"token_ids": [99999]}, "token id in the prompt"),
        ({"token_ids": []}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_invalid_request(embedded_model: Path, changes: Json, text: str) -> None:
    """The worker refuses such orders before they are jobs; the model's process does so too."""
    sent = Lines()
    order = {"model": str(embedded_model), "device": "cpu", "dtype": "auto", "max_context": None}
    engine = model_process.load(order, model_process.Outbox(sent))
    sampling = {"temperature": 0.0, "seed": 1}
    job = {"id": 1, "token_ids": [1, 15043], "max_tokens": 2, "sampling": sampling, "stop": []}
    engine.generate(job | changes)
    engine.generate(job | {"id": 2})
    failed, *others = sent.messages()[1:]
    assert (failed["is"], failed["id"], failed["code"]) == ("failed", 1, "INVALID_REQUEST")
    assert text in failed["message"]
    assert (others[-1]["is"], others[-1]["reason"], others[-1]["tokens"]) == ("done", "length", 2)


def test_a_vocabulary_that_lacks_a_byte(tmp_path: Path) -> None:
    """Refused with 400: the prompt can't be tokenized, and nothing is started."""
    texts = [b"<unk>", b"<s>", b"</s>", "\u2581".encode(), b"a", b"b"] + [b"p%d" % n for n in range(58)]
    keys = {
        "tokenizer.ggml.tokens": (texts, GGUFValueType.ARRAY, GGUFValueType.STRING),
        "tokenizer.ggml.scores": ([0.0] * 64, GGUFValueType.ARRAY, GGUFValueType.FLOAT32),
        "tokenizer.ggml.token_type": ([2, 3, 3] + [1] * 61, GGUFValueType.ARRAY, GGUFValueType.INT32),
    }
    model = write_llama(tmp_path / "model.gguf", vocab=64, keys=keys)  # type: ignore[arg-type]
    with running(model) as worker, worker.ready().client() as client:
        answer = client.post("/execute", json=request("bytes", prompt="é"))
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["constraint"] == "vocabulary"
        assert execute(client, request("letters", prompt="ab"))[-1]["type"] == "end"
