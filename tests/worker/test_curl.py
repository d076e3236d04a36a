"""`curl -N`, as people try a stream: tokens arrive one by one."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.worker.running_worker import RunningWorker, request


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_tokens_arrive_one_by_one(
    worker: RunningWorker, record_testsuite_property: Callable[[str, object], None]
) -> None:
    body = json.dumps(request("curl", max_tokens=40))
    command = ["curl", "-N", "-s", "--noproxy", "*", f"{worker.url}/execute"]
    command += ["-H", "Content-Type: application/json", "-d", body]
    arrived: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == b"event: token\n":
                arrived.append(time.monotonic())
    assert process.returncode == 0 and len(arrived) == 40
    pauses = sorted(after - before for before, after in zip(arrived, arrived[1:], strict=False))
    record_testsuite_property("median_pause_ms", round(1000 * pauses[len(pauses) // 2], 2))
    assert pauses[len(pauses) // 2] > 0.002, "tokens came in bunches"
    assert arrived[-1] - arrived[0] > 20 * pauses[len(pauses) // 2]
