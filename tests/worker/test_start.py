"""How a worker starts, and all the ways in which it does not: one clear line and an exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from llama_ckpt.errors import OptionError
from llama_ckpt.worker.options import WorkerOptions, parse_options
from llama_ckpt.worker.serving import bind
from reference_dumps import embedded_model as model_path
from tests.worker.pool_manager import pool_manager
from tests.worker.running_worker import RunningWorker, execute, request, running

PROMISED = "--worker-id test --model test.gguf --port 8080 --callback-url http://localhost:9999".split()


def test_the_promised_command_line() -> None:
    options = parse_options(PROMISED)
    assert options == WorkerOptions("test", "test.gguf", 8080, "http://localhost:9999")
    defaults = (options.host, options.device, options.dtype, options.max_context, options.queue_size)
    assert defaults == ("127.0.0.1", "auto", "auto", None, 64)
    assert (options.job_timeout, options.grace) == (300, 10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--worker-id, --model, --port, --callback-url"),
        ([*PROMISED, "--port", "65536"], "got '65536', wanted 0 to 65535"),
        ([*PROMISED, "--port", "http"], "got 'http', wanted 0 to 65535"),
        ([*PROMISED, "--queue-size", "-1"], "got '-1', wanted 0 or more"),
        ([*PROMISED, "--job-timeout", "0"], "--job-timeout"),
        ([*PROMISED, "--grace", "nan"], "--grace"),
        ([*PROMISED, "--callback-url", "pool:9999"], "wanted http://host:port/path"),
        ([*PROMISED, "--callback-url", "http://pool:x/"], "wanted http://host:port/path"),
        ([*PROMISED, "--worker-id", ""], "--worker-id"),
        ([*PROMISED, "--dtype", "int8"], "--dtype"),
        ([*PROMISED, "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_options(words: list[str], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(words)
    assert said in str(caught.value) and "--help" in str(caught.value)


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys\ntry:\n    import llama_ckpt.worker.__main__ as m; sys.argv[1:] = ['--help']; m.main()\n"
    )
    code += "finally: print([m for m in ('torch', 'uvicorn', 'numpy', 'checkpoints') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Example: llama-ckpt-worker" in done.stdout and "\n[]\n" in done.stdout, done


def test_the_installed_command_is_there() -> None:
    command = Path(sys.executable).with_name("llama-ckpt-worker")
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("llama_ckpt ")


def check_refused(worker: RunningWorker, sentence: str, code: int = 2) -> None:
    """The worker ends with that code, and its last line says why."""
    last = worker.end()
    assert worker.process.returncode == code
    assert last["level"] == "error" and sentence in last["message"], last
    assert last["worker_id"] == "test" and "Traceback" not in last["message"]


def test_bad_model_files(tmp_path: Path, embedded_model: Path) -> None:
    (tmp_path / "text.gguf").write_text("GGML is not GGUF")
    (tmp_path / "half.gguf").write_bytes(embedded_model.read_bytes()[: 6 << 20])
    with pool_manager(200) as manager:
        names = {"missing.gguf": "No such file", "text.gguf": "GGUF", "half.gguf": "tensor"}
        workers = {name: RunningWorker(tmp_path / name, callback_url=manager.url) for name in names}
        for name, sentence in names.items():
            check_refused(workers[name], sentence)
        assert manager.calls == []


def test_a_context_longer_than_the_models(embedded_model: Path) -> None:
    with running(embedded_model, "--max-context", "4097") as worker:
        check_refused(worker, "--max-context: got 4097, wanted at most the model's context of 4096")


def test_a_port_in_use(worker: RunningWorker) -> None:
    with pool_manager(200) as manager:
        with running(model_path(), "--port", str(worker.port), callback_url=manager.url) as second:
            check_refused(second, f"cannot listen on 127.0.0.1:{worker.port}: Address already in use")
        assert manager.calls == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu(embedded_model: Path) -> None:
    with pool_manager(200) as manager:
        with running(embedded_model, "--device", "cuda", callback_url=manager.url) as worker:
            check_refused(worker, "device: got cuda, wanted one of 0 CUDA devices")
        assert manager.calls == []


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(OptionError, match="cannot listen on 192.0.2.1:0"):
        bind("192.0.2.1", 0, client_timeout=30)


def test_start_up_in_order(embedded_model: Path) -> None:
    """The port is there at once, and health says 503; the callback comes after loading."""
    with pool_manager(503, 200) as manager:
        with running(embedded_model, callback_url=manager.url) as worker, worker.client() as client:
            loading = client.get("/health")
            assert loading.status_code == 503
            assert (loading.json()["status"], loading.json()["model_loaded"]) == ("loading", False)
            early = client.post("/execute", json=request("early"))
            assert early.status_code == 503 and early.headers["retry-after"] == "1"
            assert early.json()["errors"][0]["constraint"] == "loading"
            worker.ready()
            health = client.get("/health")
            assert health.status_code == 200
            vram = health.json()["vram_bytes"]
            assert health.json() == {
                "status": "healthy", "model_loaded": True, "vram_bytes": vram, "memory_type": "cpu",
            }  # fmt: skip
            assert 11e6 < vram < model_path().stat().st_size
            told = {"worker_id": "test", "vram_bytes": vram, "uri": worker.url}
            assert manager.calls == [told, told]
            assert execute(client, request("first"))[-1]["type"] == "end"
        messages = [line["message"] for line in worker.log]
        wanted = [
            "listening",
            "loading the model",
            "model loaded",
            "the callback failed",
            "announced",
            "ready",
        ]
        assert [message for message in messages if message in wanted] == wanted
        common = {"timestamp", "level", "message", "worker_id", "model", "port"}
        assert all(common <= set(line) for line in worker.log)


def test_test_mode_is_logged(worker: RunningWorker) -> None:
    line = worker.logged("test mode: the callback is not called")
    assert line["callback_url"] == "http://localhost:9999" and line["port"] == worker.port


def test_a_callback_that_refuses(reciter_model: Path) -> None:
    with pool_manager(307) as manager, running(reciter_model, callback_url=manager.url) as worker:
        check_refused(worker, "answered 307, wanted 2xx", code=1)


def test_the_models_process_ends_while_loading(reciter_model: Path) -> None:
    with running(reciter_model) as worker:
        worker.logged("loading the model")
        pid = worker.model_pid()
        os.kill(pid, signal.SIGKILL)
        check_refused(worker, "the model's process ended while loading, signal 9", code=1)


def test_several_workers_side_by_side(worker: RunningWorker, reciter: RunningWorker) -> None:
    names = [
        httpx.get(f"{one.url}/v1/models", trust_env=False).json()["data"][0]["id"]
        for one in (worker, reciter)
    ]
    assert names == ["llama_ckpt tiny-32l", "reciting"]
