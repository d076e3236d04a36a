"""Workers that several modules share; starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.worker.reciting_file import write_reciting
from tests.worker.running_worker import RunningWorker, running


@pytest.fixture(scope="session")
def worker(embedded_model: Path) -> Iterator[RunningWorker]:
    """A worker with the embedded model and the default options."""
    with running(embedded_model) as started:
        yield started.ready()


@pytest.fixture(scope="session")
def tight(embedded_model: Path) -> Iterator[RunningWorker]:
    """A worker with the embedded model and narrow limits; a job there has all the time it needs."""
    limits = "--queue-size 1 --max-context 2048 --client-timeout 1".split()
    with running(embedded_model, *limits) as started:
        yield started.ready()


@pytest.fixture(scope="session")
def hurried(embedded_model: Path) -> Iterator[RunningWorker]:
    """A worker with the embedded model; a job has half a second, as one token may take on a busy machine."""
    with running(embedded_model, "--job-timeout", "0.5") as started:
        yield started.ready()


@pytest.fixture(scope="session")
def reciter_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that recites a known text, quickly; its context is 128 tokens."""
    return write_reciting(tmp_path_factory.mktemp("reciting") / "model.gguf")


@pytest.fixture(scope="session")
def reciter(reciter_model: Path) -> Iterator[RunningWorker]:
    """A worker with that model."""
    with running(reciter_model) as started:
        yield started.ready()


@pytest.fixture
def client(worker: RunningWorker) -> Iterator[httpx.Client]:
    """A client of `worker`."""
    with worker.client() as one:
        yield one


@pytest.fixture
def reciter_client(reciter: RunningWorker) -> Iterator[httpx.Client]:
    """A client of `reciter`."""
    with reciter.client() as one:
        yield one
