"""The committed dumps as trials: each model and each recording opened once in a process.

A run is named by its dump, its dtype where that is not float32, and its device where that is not the
CPU: `f32/hello`, `f32/hello-float16`, `f32/hello-cuda`.
"""

from __future__ import annotations

import atexit
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.ladder.subjects import dump_folders, recorded_subjects
from llama_ckpt.ladder.trial import Trial
from llama_ckpt.points import Checkpoint, split_name
from llama_ckpt.weights.quants import exact_matmul
from reference_dumps import embedded_model

__all__ = [
    "EIGHT_TOKENS",
    "EVERY_DUMP",
    "DumpRun",
    "check_a_point_fails",
    "check_every_point",
    "judge_own",
]


@dataclass(frozen=True)
class DumpRun:
    """A committed dump, and what it is run with."""

    dump: str
    dtype: str = "float32"
    device: str = "cpu"

    def __str__(self) -> str:
        extra = (self.dtype != "float32", self.dtype), (self.device != "cpu", self.device)
        return "-".join([self.dump, *(name for there, name in extra if there)])

    def trial(self) -> Trial:
        """The trial; model, oracle and free runs are shared by all that ask for it."""
        return _trials(self.device, self.dtype)[self.dump]


def _dumps() -> list[str]:
    folders = dump_folders(embedded_model().parent)
    manifests = {folder.name: json.loads((folder / "manifest.json").read_text("utf-8")) for folder in folders}
    return [f"{name}/{dump['name']}" for name, manifest in manifests.items() for dump in manifest["dumps"]]


@cache
def _trials(device: str, dtype: str) -> dict[str, Trial]:
    scratch = tempfile.TemporaryDirectory(prefix="llama-ckpt-test-")
    atexit.register(scratch.cleanup)
    path = embedded_model()
    subjects = recorded_subjects(path, dump_folders(path.parent), device, dtype, Path(scratch.name))
    return {
        recording.label: Trial(subject, recording) for subject in subjects for recording in subject.recordings
    }


def _parameters(runs: Iterable[DumpRun]) -> list[Any]:
    return [
        pytest.param(run, id=str(run), marks=[pytest.mark.cuda] if run.device == "cuda" else [])
        for run in runs
    ]


DUMPS = _dumps()
EIGHT_TOKENS = next(DumpRun(dump) for dump in DUMPS if dump.startswith("f32/") and "eight" in dump)
"""Float32 weights and several tokens: what a wrong layer is tried on."""

EVERY_DUMP = _parameters(
    DumpRun(dump, dtype, device)
    for device in ("cpu", "cuda")
    for dtype, dumps in (
        ("float32", DUMPS),
        ("float16", ["f32/hello", EIGHT_TOKENS.dump]),
        ("bfloat16", ["f32/hello", EIGHT_TOKENS.dump]),
    )
    for dump in dumps
)
"""Every committed dump in float32, two in half precision, all on both devices."""


def check_every_point(run: DumpRun, checkpoint: Checkpoint) -> None:
    """Run a checkpoint on a dump, teacher-forced and free; every point there is, and passes."""
    with exact_matmul():
        verdicts = list(run.trial().run(checkpoint))
    failed = [f"{one.name} ({one.error_kind}): {one.reason}" for one in verdicts if one.verdict != "pass"]
    assert not failed, "\n".join(failed)
    assert all(one.n_judged > 0 for one in verdicts)
    judged = {split_name(one.name)[1].split(".")[0] for one in verdicts}
    assert judged >= set(checkpoint.points) - _not_recorded(run.trial())


def _not_recorded(trial: Trial) -> set[str]:
    """What a dump may lack: a prompt that was given as tokens has no text to tokenize."""
    missing = {"token_ids"} if trial.recording.prompt is None else set()
    return missing | (set() if trial.recording.sampling else {"sampling"})


def judge_own(checkpoint: Checkpoint, run: DumpRun = EIGHT_TOKENS) -> list[PointVerdict]:
    """The verdicts on a checkpoint's own points with the dump's inputs."""
    with exact_matmul():
        return list(run.trial().judge_own(checkpoint))


def check_a_point_fails(verdicts: Sequence[PointVerdict]) -> None:
    """A wrong layer was seen: a point fails, and the blame is the layer's."""
    assert verdicts
    failed = [one for one in verdicts if one.verdict == "fail"]
    assert failed, "nothing failed: " + "; ".join(f"{one.name} {one.err:.1e}" for one in verdicts[:4])
    assert all(one.blame == "yours" for one in failed), [one.reason for one in failed]
