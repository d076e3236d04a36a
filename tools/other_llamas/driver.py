"""A driver's process, in the program's own environment: loads the model once, runs the prompts, writes dumps.

python -m tools.other_llamas.driver JOB.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llama_ckpt.points import split_name
from tools.other_llamas.catalogue import program
from tools.other_llamas.job import Job

__all__ = ["run"]


def run(job: Job) -> None:
    """Write the dump of every prompt."""
    one = program(job.program)
    runner = one.load(job.model, job.dtype)
    for token_ids, out in job.prompts:
        save(Path(out), runner(token_ids), job, token_ids)


def save(path: Path, found: Any, job: Job, token_ids: tuple[int, ...]) -> None:
    """A dump that says of itself what it is of, and which points and blocks were recorded on purpose."""
    sha256 = job.model.weights_sha256 if job.dtype == "float32" else None  # what is rounded are other weights
    if isinstance(found, Mapping):
        _save_tensors(path, found, job, token_ids, sha256)
    else:
        found.save(path, weights_sha256=sha256)


def _save_tensors(
    path: Path, tensors: Mapping[str, Any], job: Job, token_ids: tuple[int, ...], sha256: str | None
) -> None:
    kept = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    places = [split_name(name) for name in kept]
    metadata = {
        "token_ids": ",".join(map(str, token_ids)),
        "positions": ",".join(map(str, range(len(token_ids)))),
        "dtype": job.dtype,
        "producer": program(job.program).title,
        "points": ",".join(dict.fromkeys(point for _, point in places)),
    }
    blocks = sorted({number for number, _ in places if number is not None})
    if blocks:
        metadata["blocks"] = ",".join(map(str, blocks))
    if sha256 is not None:
        metadata["weights_sha256"] = sha256
    save_file(kept, path, metadata)


if __name__ == "__main__":
    run(Job.read(Path(sys.argv[1])))
