"""A seeded mixture of experts and what programs make of it, for tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.diagnose.patched_oracle import RIGHT, PatchedOracle
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.gguf.file import GGUFFile, open_gguf
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.oracle.c06b_experts import weights_of
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import split_name
from llama_ckpt.weights.config import LlamaConfig
from tests.comparing.ported_llama import prompt

TOKENS = tuple(prompt(20))
STREAM = ("attn_norm", "ffn_inp", "ffn_norm", "out", "output_norm", "logits")
"""What people record first."""

Tensors = dict[str, NDArray[np.float32]]


@cache
def mixture(**sizes: Any) -> Path:
    """Eight experts a block, two of which compute a token."""
    shape = {"width": 64, "n_heads": 4, "n_kv_heads": 2, "ffn": 48, "n_layers": 3, "vocab": 320}
    shape |= {"rope_theta": 1e6, "context_length": 4096, "type": "F32", "n_experts": 8, "n_experts_used": 2}
    path = Path(mkdtemp(prefix="mixture")) / "model.gguf"
    make_seeded(path, **(shape | sizes), seed=1)  # type: ignore[arg-type]
    return path


@cache
def mixture_with_twins() -> Path:
    """The same with routers that score experts 2 and 5 alike, each of which computes what it computed."""
    path = Path(mkdtemp(prefix="twins")) / "model.gguf"
    data = mixture().read_bytes()
    file = open_gguf(mixture())
    for block in range(3):
        router = np.array(file.float32(f"blk.{block}.ffn_gate_inp.weight"))
        before = router.tobytes()
        assert data.count(before) == 1
        router[5] = router[2]
        data = data.replace(before, router.tobytes())
    path.write_bytes(data)
    return path


def the_other_twin(right: PatchedOracle, router: NDArray[Any], n_used: int) -> tuple[Any, Any]:
    """A choice that of two equal scores takes the later: a right program's, whose rounding fell so."""
    chosen, _ = right.routed(router + 1e-9 * np.abs(router) * (np.arange(router.shape[1]) == 5), n_used)
    return chosen, weights_of(router, chosen)


OTHER_TWIN = PatchedOracle({"routed": the_other_twin})


@cache
def opened(model: Path) -> tuple[GGUFFile, LlamaConfig, OracleWeights]:
    file = open_gguf(model)
    config = LlamaConfig.from_gguf(file)
    return file, config, OracleWeights(file, config)


def run(program: PatchedOracle = RIGHT, model: Path | None = None) -> Tensors:
    """Every point of a run, in float32 as it is recorded."""
    seen: Tensors = {}

    def keep(name: str, array: Any) -> None:
        seen[name] = np.asarray(array, np.float32)

    _, config, weights = opened(model or mixture())
    at = np.arange(len(TOKENS))
    keep("logits", program.logits(TOKENS, weights, config=config, positions=at, tap=keep))
    return seen


def only(tensors: Mapping[str, Any], points: Collection[str]) -> dict[str, Any]:
    """Those of these points."""
    return {name: x for name, x in tensors.items() if split_name(name)[1] in points}


def compared(
    tensors: Mapping[str, Any], folder: Path, model: Path | None = None, **options: Any
) -> Comparison:
    path = folder / "theirs.safetensors"
    save_dump(path, tensors, token_ids=TOKENS, positions=range(len(TOKENS)))
    return compare_dump(path, model=model or mixture(), **options)
