"""Whatever of a right program's tensors is recorded passes: any points, any blocks, in every precision."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.mutants.right_programs.catalogue import VARIANTS
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.weights.config import LlamaConfig
from tests.comparing.their_programs import write

N_LAYERS = 5
PROGRAMS = {one.name: one for one in VARIANTS if not one.of_q8_0 and not one.name.startswith("torch")}
del PROGRAMS["attention-fused"]  # it shows less


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp())


@cache
def model(kind: str) -> Path:
    path = folder() / f"{kind}.gguf"
    kv_heads = {"grouped": 2, "alike": 4}[kind]
    make_seeded(path, width=64, n_heads=4, n_kv_heads=kv_heads, head_dim=16, ffn=96, n_layers=N_LAYERS,
                vocab=320, seed=3, type="F32")  # fmt: skip
    return path


@cache
def recorded(kind: str, program: str, n: int) -> tuple[tuple[int, ...], Mapping[str, NDArray[np.float32]]]:
    """The tokens of a prompt and every tensor of a run."""
    file = open_gguf(model(kind))
    config = LlamaConfig.from_gguf(file)
    weights = OracleWeights(file, config)
    tokens = (1, *np.random.default_rng(n).integers(3, 320, n - 1).tolist())
    seen: dict[str, Any] = {}
    run = PROGRAMS[program].program
    with np.errstate(all="ignore"):
        seen["logits"] = run.logits(
            tokens, weights, config=config, positions=np.arange(n), tap=seen.__setitem__
        )
    return tokens, {name: np.float32(array) for name, array in seen.items()}


def passes(kind: str, program: str, n: int, keep: Any) -> None:
    """Compare those of a run's tensors whose names `keep` takes."""
    tokens, tensors = recorded(kind, program, n)
    kept = {name: x for name, x in tensors.items() if keep(name)}
    if not kept:
        return
    dtype = PROGRAMS[program].dtype
    path = write(folder(), kept, token_ids=tokens, positions=range(n), dtype=dtype)
    report = compare_dump(path, model=model(kind), partial=True)
    assert report.verdict == "pass", f"{report.reason}, of {sorted(kept)}"
    assert report.compared == len(kept)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["grouped", "alike"]),
    program=st.sampled_from(sorted(PROGRAMS)),
    n=st.sampled_from([1, 2, 3, 17, 40]),
    share=st.sampled_from([0.02, 0.1, 0.3, 0.6, 0.9]),
    seed=st.integers(0, 1 << 16),
)
def test_any_points_of_a_right_program_pass(kind: str, program: str, n: int, share: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    passes(kind, program, n, lambda name: draw.random() < share)


@pytest.mark.parametrize("program", ["stored-float16", "stored-bfloat16", sorted(PROGRAMS)[0]])
@pytest.mark.parametrize(
    "points", [(".out",), ("_norm",), ("attn_probs", "v"), ("ffn_gate", "ffn_swiglu"), ("ffn_inp", "k_rope")]
)
def test_a_few_points_of_all_blocks_pass(program: str, points: tuple[str, ...]) -> None:
    passes("grouped", program, 17, lambda name: name.endswith(points))
