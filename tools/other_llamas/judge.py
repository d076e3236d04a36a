"""A program on one model in one dtype: its dumps are made, and each is judged by `llama-ckpt compare`.

The comparison runs as users run it, in a process of its own, so that its memory is given back.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.other_llamas.catalogue import program
from tools.other_llamas.environments import OTHERS, ROOT, run_in
from tools.other_llamas.job import Job, ModelFiles, Run
from tools.other_llamas.models import prompt

__all__ = ["DriverError", "Errors", "Judged", "judged"]

CONDEMNED = OTHERS / "condemned"
"""Dumps of right programs that did not pass."""

DRIVER_SECONDS = 1800.0
COMPARE_SECONDS = 1800.0


class DriverError(Exception):
    """A program that could not be run: what was asked of it, and its last lines."""


@dataclass
class Errors:
    """The largest relative errors at one kind of point, over blocks and prompts.

    Attributes:
        own: made at this step, on the program's own inputs; `share`: of what is allowed, the most that one
            that passes needs, and `metric`: in which of the metrics.
        total: of the whole run; `reference` llama.cpp's at the same points, NaN where it was not recorded.
    """

    own: float = math.nan
    share: float = math.nan
    metric: str = ""
    total: float = math.nan
    reference: float = math.nan

    def take(self, point: Mapping[str, Any]) -> None:
        """Count one point of a comparison's JSON in."""
        own, total = point["own"] or {}, point["total"] or {}
        self.own = _larger(self.own, own.get("err"))
        self.total = _larger(self.total, total.get("err"))
        self.reference = _larger(self.reference, total.get("err_reference"))
        share = own.get("share")
        if own.get("verdict") == "pass" and share is not None and not share <= self.share:
            self.share, self.metric = share, own["nearest"]


@dataclass(frozen=True)
class Judged:
    """What compare said of one run: of a program, on one model, in one dtype, on a prompt of some length.

    Attributes:
        passed, sentence: the verdict and its reason.
        first: the first wrong point; compared: how many were judged.
        logits: their total error, NaN where they were not recorded.
        points: the largest errors over the blocks, by neutral name.
    """

    key: str
    model: str
    dtype: str
    length: int
    passed: bool
    sentence: str
    first: str
    compared: int
    logits: float
    points: dict[str, Errors]
    device: str = "cpu"

    @property
    def run(self) -> Run:
        """Of what."""
        return Run(self.key, self.model, self.dtype, self.length, self.device)


def _larger(a: float, b: float | None) -> float:
    return a if b is None or math.isnan(b) else b if math.isnan(a) else max(a, b)


def judged(
    key: str, files: ModelFiles, dtype: str, lengths: Sequence[int], reference: Path | None
) -> Iterator[Judged]:
    """Run a program on prompts of these lengths, which loads it once, and judge each dump.

    Raises:
        DriverError: the program could not be run, which is no result.
    """
    (OTHERS / "dumps").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OTHERS / "dumps") as scratch:
        outs = {length: Path(scratch) / f"{length}.safetensors" for length in lengths}
        prompts = tuple((prompt(files, length), str(out)) for length, out in outs.items())
        _drive(Job(key, files, dtype, prompts), Path(scratch) / "job.json")
        for length, out in outs.items():
            found = _judged(key, files, dtype, length, _compared(out, files, reference, length))
            if found.passed or program(key).deviates:
                out.unlink()
            else:  # somebody will want to look at it
                CONDEMNED.mkdir(exist_ok=True)
                out.replace(CONDEMNED / f"{'-'.join(map(str, found.run))}.safetensors")
            yield found


def _drive(job: Job, path: Path) -> None:
    job.write(path)
    name = program(job.program).environment
    done = run_in(name, "tools.other_llamas.driver", str(path), timeout=DRIVER_SECONDS)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise DriverError(f"{job.program} on {job.model.name}, {job.dtype}: the driver failed\n{tail}")


def _compared(dump: Path, files: ModelFiles, reference: Path | None, length: int) -> dict[str, Any]:
    """The JSON of a comparison."""
    report = dump.with_suffix(".json")
    command = [sys.executable, "-m", "llama_ckpt", "compare", str(dump), "--model", files.gguf]
    if reference is not None and (reference / f"n{length}.safetensors").is_file():
        command += ["--reference", str(reference), "--dump", f"n{length}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--json", str(report)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMPARE_SECONDS,
    )
    if done.returncode not in (0, 1, 3):  # 3: its arithmetic is not declared, which is for a reader to see
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def _judged(key: str, files: ModelFiles, dtype: str, length: int, found: Mapping[str, Any]) -> Judged:
    """What is kept of a comparison's JSON."""
    points: dict[str, Errors] = {}
    logits = math.nan
    for point in found["points"]:
        points.setdefault(point["point"], Errors()).take(point)
        if point["name"] == "logits" and point["total"]:
            logits = point["total"]["err"] or math.nan
    return Judged(
        key,
        files.name,
        dtype,
        length,
        passed=found["verdict"] == "pass",
        sentence=found["reason"],
        first=found["first_wrong"] or "",
        compared=found["compared"],
        logits=logits,
        points=points,
        device=files.device,
    )
