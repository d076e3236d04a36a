"""A small dump of made-up numbers, right in form, for tests of reading and writing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.manifest import Continuation, DumpEntry, ModelRecord, Producer, Sampling
from llama_ckpt.dumps.reference import point_names
from llama_ckpt.points import BLOCK_POINTS, POINTS, split_name

__all__ = ["ENTRY", "MODEL", "PRODUCER", "tensors"]

SIZES = {"token": 3, "key": 3, "width": 8, "head": 4, "kv_head": 2, "head_dim": 6, "q_width": 24}
SIZES |= {"ffn": 10, "vocab": 20}

MODEL = ModelRecord(
    "sample",
    "5a" * 32,
    "3e" * 32,
    ("F16", "F32"),
    {"rms_norm_eps": 1e-5},
    {"sha256": "77" * 32, "how": "F32"},
)
PRODUCER = Producer(
    "llama.cpp",
    "llama.cpp 0.5.0, ggml 0.25.3",
    "0.3.36",
    "CPU : AVX2 = 1",
    "cpu",
    False,
    "f32",
    "f32",
    1,
    False,
)
ENTRY = DumpEntry(
    name="hello",
    file="hello.safetensors",
    sha256="",
    prompt='Hel"lo\n[\n 1,\n 2\n] ☃',
    token_ids=(1, 5, 7),
    positions=(4000, 4001, 4002),
    n_layers=3,
    blocks=(0, 2),
    points=tuple(point.name for point in BLOCK_POINTS),
    greedy_tokens=(4, 5, 6),
    continuation=Continuation((6, 9), (0.5, 1e-3, 2.0), "eos", " x\ufffd", "IHjD"),
    sampling=(Sampling(1.0, 2, 1.0, 0.0, 2),),
    penalized=(Sampling(1.0, 2, 1.0, 0.0, 2, 1.25, (1, 5, 7)),),
)


def tensors() -> dict[str, NDArray[Any]]:
    """Every tensor of `ENTRY`, the same each time."""
    generator = np.random.default_rng(0)
    made: dict[str, NDArray[Any]] = {}
    for name in point_names(ENTRY):
        shape = [SIZES[axis] for axis in POINTS[split_name(name)[1]].axes]
        made[name] = generator.standard_normal(shape).astype(np.float32)
    made["last_logits"] = made["logits"][-1].copy()
    for kind in ("sampling", "penalized"):
        made[f"{kind}.0.ids"] = np.array([3, 11], np.int32)
        made[f"{kind}.0.probabilities"] = np.array([0.25, 0.75], np.float32)
    return made
