"""Long prompts: our own layers pass where a model was trained, and memory does not grow with the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.c08_logits import logits
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.dumps.theirs import open_their_dump, save_dump
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.records import load_weights
from tests.draws import draws
from tests.gguf_files import write_llama
from tools.measure_compare import FOUR, Case, measured

STORIES: dict[str, Any] = {
    "width": 64,
    "n_heads": 8,
    "n_kv_heads": 4,
    "ffn": 172,
    "n_layers": 5,
    "vocab": 512,
}
"""The shape of llama2.c's smallest model, 260 thousand weights."""

N = 300


def trained_like(path: Path) -> Path:
    """A model with what training leaves: sharp attention, features far larger than others, weights' means."""
    rng = np.random.default_rng(5)
    tensors: dict[str, Any] = {}
    for block in range(STORIES["n_layers"]):
        for name, rows in (("q", 64), ("k", 32)):
            matrix = rng.standard_normal((rows, 64)) * (1.8 / 8) + 0.3 / 8
            tensors[f"blk.{block}.attn_{name}.weight"] = np.float32(matrix)
        gains = 1 + rng.standard_normal(64) / 4
        gains[[3, 40]] = 6
        tensors[f"blk.{block}.attn_norm.weight"] = np.float32(gains)
    return write_llama(path, seed=5, tensors=tensors, **STORIES)


def record_ours(model: Path, out: Path) -> list[int]:
    """Our own layers in float32 on random tokens, every point; the tokens."""
    file = open_gguf(model)
    config = LlamaConfig.from_gguf(file)
    tokens = [1, *np.random.default_rng(N).integers(3, config.vocab_size, N - 1).tolist()]
    seen: dict[str, Any] = {}
    with torch.inference_mode():
        weights, at = load_weights(file, config, "cpu"), torch.arange(N)
        seen["logits"] = logits(
            torch.tensor(tokens),
            weights,
            config=config,
            positions=at,
            dtype=torch.float32,
            tap=seen.__setitem__,
        )
    tensors = {name: tensor.numpy() for name, tensor in seen.items()}
    save_dump(out, tensors, token_ids=tokens, positions=range(N), dtype="float32")
    return tokens


def test_our_own_layers_pass_on_sharp_attention_over_300_tokens(tmp_path: Path) -> None:
    model, dump = trained_like(tmp_path / "model.gguf"), tmp_path / "theirs.safetensors"
    tokens = record_ours(model, dump)
    report = compare_dump(dump, model=model)
    assert report.verdict == "pass", report.reason
    assert report.compared == 3 + 17 * STORIES["n_layers"]

    # One set of limits for all models condemns them: elements are further off than most models' are.
    config = LlamaConfig.from_gguf(open_gguf(model))
    weights, exact = OracleWeights(open_gguf(model), config), dict[str, Any]()
    oracle.logits(tokens, weights, config=config, positions=np.arange(N), tap=exact.__setitem__)
    theirs, beyond = open_their_dump(dump), 0
    for name in (f"blk.{block}.attn_probs" for block in range(STORIES["n_layers"])):
        limit = limit_for(name, "float32", "own")
        beyond += limit.measure(theirs.raw(name), exact[name]).element_err > limit.element_err
    assert beyond


def test_a_prompt_of_many_heads_needs_less_memory_than_its_scores(tmp_path: Path) -> None:
    """Scores and probabilities, the oracle's and what rounding leaves of them, are never held at once.

    All of it at 768 tokens and 16 heads would be some 75 MB each, a dozen times over where a step is
    made of several; 2,048 tokens and 32 heads, 14 times as much, are to fit in 4 GB
    (`python -m tools.measure_compare wide-2048`).
    """
    shape = {"width": 128, "n_heads": 16, "ffn": 128, "n_layers": 1, "vocab": 320, "type": "F32", "seed": 1}
    found, _ = measured(Case(draws(384, 768), shape), tmp_path)
    assert found["verdict"] == "pass"
    assert found["gb"] < 0.25, found
    assert found["used"] < 6, found


@pytest.mark.parametrize("wrong", ["blk.1.attn_probs", "blk.1.out"])
def test_one_wrong_point_is_explained_in_little_more(wrong: str, tmp_path: Path) -> None:
    """Most explanations are asked of a few rows or of one head: half of the processor's time is judging.

    Two layers of 600 tokens take 2 s of it and 0.5 GB, 400 tokens half of that; a busy machine, some more.
    """
    found, _ = measured(Case(draws(400, 600), FOUR | {"n_layers": 2}, wrong), tmp_path)
    assert found["verdict"] == "fail"
    assert found["first"] == f"{wrong}, made here"
    assert found["gb"] < draws(0.4, 0.6), found
    assert found["used"] < draws(5, 8), found
