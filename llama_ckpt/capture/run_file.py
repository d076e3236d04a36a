"""`capture_run`: llama.cpp's tensors of a run of several calls, as a dump that `compare` reads like any.

    capture_run("mine.gguf", plan_of([[1, 15043, 29892]], decode=3), out="run.safetensors")

Such a dump is no reference that others are held against; a recording of one pass is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from safetensors.numpy import load_file

from llama_ckpt.capture.launch import run_recorder
from llama_ckpt.capture.plan import Plan, Rows
from llama_ckpt.capture.record import request_for
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.errors import OptionError
from llama_ckpt.gguf.file import weights_sha256
from llama_ckpt.points import POINTS
from llama_ckpt.whole_files import temporary_folder

__all__ = ["capture_run"]


def capture_run(
    model: str | os.PathLike[str],
    plan: Plan,
    *,
    out: str | os.PathLike[str],
    blocks: Sequence[int] | None = None,
    points: Sequence[str] | None = None,
    n_threads: int = 1,
) -> None:
    """Record llama.cpp on a plan of calls.

    Args:
        model: the GGUF file.
        plan: its calls, and what is removed and copied between them; see `plan_of`.
        out: the safetensors file to write.
        blocks: blocks to record in full; None for all. `blk.N.out` is recorded for every block.
        points: the points to keep, without a block's number; None for all.
        n_threads: threads of llama.cpp; its bits do not depend on it.

    Raises:
        OptionError: a token outside the vocabulary, a point that there is not, or no tokens.
        LlamaCkptError: as `capture`.
    """
    tokens = [token for op in plan if isinstance(op, Rows) for _, token in op.rows]
    for point in points or ():
        if point not in POINTS:
            raise OptionError("points", got=point, wanted="names as in points.py")
    file, config, request = request_for(model, tokens, blocks=blocks, n_threads=n_threads)
    if any(not 0 <= token < config.vocab_size for token in tokens):
        raise OptionError("tokens", got=max(tokens), wanted=f"ids from 0 to {config.vocab_size - 1}")
    request = replace(request, plan=plan, points=tuple(points or POINTS), max_tokens=0)
    with temporary_folder("capture") as scratch:
        (found,) = run_recorder([request], scratch)
        tensors = load_file(scratch / "0.safetensors")
    version = str(found["version"]).replace("llama.cpp llama.cpp", "llama.cpp")
    save_dump(
        out,
        tensors,
        **found["rows"],
        weights_sha256=weights_sha256(file),
        dtype="float32",
        points=points,
        producer=f"llama.cpp {version}",
    )
