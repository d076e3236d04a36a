"""Somebody's program, for tests: the oracle, rounded to float32 as a dump is, right or with a bug."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import reference_dumps
from llama_ckpt.diagnose.bugs import catalogue
from llama_ckpt.diagnose.patched_oracle import RIGHT, PatchedOracle
from llama_ckpt.dumps.reference import DumpSet, open_dumps
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.weights.config import LlamaConfig

HELLO = (1, 15043)
EIGHT = (1, 1126, 4177, 1497, 29892, 2803, 727, 367)
N_LAYERS = 32

Tensors = dict[str, NDArray[np.float32]]


@cache
def model() -> tuple[LlamaConfig, OracleWeights]:
    """The embedded model for the oracle."""
    file = open_gguf(reference_dumps.embedded_model())
    config = LlamaConfig.from_gguf(file)
    return config, OracleWeights(file, config)


@cache
def recorded(weights: str = "f32") -> DumpSet:
    """llama.cpp's dumps of the embedded model."""
    return open_dumps(reference_dumps.dump_folder(weights))


def bug(name: str) -> PatchedOracle:
    """The oracle with a bug of the catalogue."""
    return next(bug.oracle for bug in catalogue() if bug.name == name)


def run(
    token_ids: Sequence[int] = HELLO,
    *,
    wrong: PatchedOracle = RIGHT,
    blocks: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> Tensors:
    """Every point of a run, each step rounded to float32 as it is recorded.

    Args:
        wrong: the program; blocks: the only ones in which it is wrong, None for the whole model.
    """
    config, weights = model()
    seen: Tensors = {}

    def keep(name: str, array: Any) -> None:
        seen[name] = np.float32(array)

    at = np.arange(len(token_ids)) if positions is None else np.asarray(positions)
    if blocks is None:
        keep("logits", wrong.logits(token_ids, weights, config=config, positions=at, tap=keep))
        return seen
    x = RIGHT.embed(token_ids, weights.token_embd)
    keep("embd", x)
    for number, block_weights in enumerate(weights.blocks):
        program = wrong if number in blocks else RIGHT

        def inner(point: str, array: Any, number: int = number) -> None:
            keep(f"blk.{number}.{point}", array)

        x = np.float32(program.block(x, block_weights, config=config, positions=at, tap=inner))
        inner("out", x)
    keep("logits", RIGHT.output_logits(x, weights, config=config, tap=keep))
    return seen


@cache
def right_run(token_ids: tuple[int, ...] = HELLO) -> Mapping[str, NDArray[np.float32]]:
    """A right program's tensors; a copy of the dictionary is the tests' to change."""
    return run(token_ids)


def write(folder: Path, tensors: Mapping[str, Any], **facts: Any) -> Path:
    """Write a dump that declares its tokens, unless `facts` say otherwise."""
    path = folder / "theirs.safetensors"
    save_dump(path, tensors, **({"token_ids": HELLO, "positions": range(len(HELLO))} | facts))
    return path
