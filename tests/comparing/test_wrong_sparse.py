"""Whatever of a wrong program is recorded: that an error is made in a step is never said of a right one."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.diagnose.bugs import catalogue
from llama_ckpt.diagnose.patched_oracle import RIGHT, DoesNotApply, PatchedOracle
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.weights.config import LlamaConfig
from tests.comparing.their_programs import Tensors, write
from tests.draws import draws

N_LAYERS = 4
INSIDE = ("block", "attention", "rope", "rms_norm", "swiglu", "qkv", "linear", "softmax")
BUGS = {bug.name: bug for bug in catalogue() if bug.function in INSIDE}


@cache
def model() -> tuple[Path, LlamaConfig, OracleWeights]:
    path = Path(tempfile.mkdtemp()) / "m.gguf"
    make_seeded(path, width=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn=96, n_layers=N_LAYERS, vocab=320,
                seed=5, type="F32")  # fmt: skip
    file = open_gguf(path)
    config = LlamaConfig.from_gguf(file)
    return path, config, OracleWeights(file, config)


def run(tokens: tuple[int, ...], wrong: PatchedOracle, block: int) -> Tensors:
    """Every point of a run with a bug in one block."""
    _, config, weights = model()
    seen: Tensors = {}

    def keep(name: str, array: Any) -> None:
        seen[name] = np.float32(array)

    x = RIGHT.embed(tokens, weights.token_embd)
    keep("embd", x)
    for number, own in enumerate(weights.blocks):
        program = wrong if number == block else RIGHT

        def inner(point: str, array: Any, number: int = number) -> None:
            keep(f"blk.{number}.{point}", array)

        x = np.float32(program.block(x, own, config=config, positions=np.arange(len(tokens)), tap=inner))
        inner("out", x)
    keep("logits", RIGHT.output_logits(x, weights, config=config, tap=keep))
    return seen


def judged(tensors: Tensors, names: Collection[str], tokens: tuple[int, ...]) -> Comparison:
    kept = {name: x for name, x in tensors.items() if name in names}
    path = write(model()[0].parent, kept, token_ids=tokens, positions=range(len(tokens)), dtype="float32")
    return compare_dump(path, model=model()[0], partial=True)


def prompt(n: int, seed: int) -> tuple[int, ...]:
    return (1, *np.random.default_rng(seed).integers(3, 320, n - 1).tolist())


@pytest.mark.parametrize("seed", range(draws(6, 60)))
def test_where_a_bug_is_made(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens, block = prompt(int(rng.choice([2, 5, 10, 21])), seed), int(rng.integers(N_LAYERS))
    name = str(rng.choice(sorted(BUGS)))
    try:
        tensors = run(tokens, BUGS[name].oracle, block)
    except DoesNotApply:
        return
    whole = judged(tensors, tensors, tokens)
    made = {point.name for point in whole.points if point.made == "here"}
    off = {point.name for point in whole.points if point.made}
    for share in (0.5, 0.08):
        names = [one for one in tensors if rng.random() < share] or ["logits"]
        report = judged(tensors, names, tokens)
        told = f"{name} in block {block}, {len(tokens)} tokens, of {names}"
        for point in report.points:
            if point.made == "here":
                assert point.name in made or not made, f"{told}: {point.name}"
            if point.made == "between":
                assert made & {*point.since.unseen, point.name} or not made, f"{told}: {point.name}"
        assert report.verdict == "fail" or not off & set(names), told


@pytest.mark.parametrize("kept", [("q_rope", "k_rope"), ("attn_probs", "ffn_gate"), ("attn_out",), ("out",)])
def test_a_forgotten_norms_weight_is_known_by_what_was_made_of_it(kept: tuple[str, ...]) -> None:
    """Not by q, k and v alone: that it was recorded too early is said where it was read with its weight."""
    tokens = prompt(21, 3)
    tensors = run(tokens, BUGS["norm-weight-missing"].oracle, 0)
    names = ["blk.0.attn_norm", *(f"blk.0.{point}" for point in kept)]
    report = judged(tensors, names, tokens)
    assert not report.findings
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.attn_norm"
    weights = model()[2].blocks[0]
    right = judged(run(tokens, RIGHT, 0), names, tokens)
    assert right.verdict == "pass"
    early = run(tokens, RIGHT, 0)
    early["blk.0.attn_norm"] = np.float32(early["blk.0.attn_norm"] / weights.attn_norm)
    report = judged(early, names, tokens)
    assert [one.kind for one in report.findings] == ["norm_before_weight"] and report.first_wrong is None


def names_of(report: Comparison) -> set[str]:
    """What is said to explain a tensor whole, and what gives the same tensor."""
    found = set()
    for one in report.diagnoses:
        for name in (bug.name for bug in one.named[:1] if bug.explained):
            alike = [other for group in one.indistinguishable if name in group for other in group]
            found |= {part for each in (name, *alike) for part in each.split("+")}
    return found


@pytest.mark.parametrize("seed", range(draws(3, 40)))
def test_of_two_bugs_in_one_block_none_has_a_wrong_name(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    tokens, block = prompt(10, seed), int(rng.integers(N_LAYERS))
    first, second = rng.choice(sorted(name for name in BUGS if BUGS[name].function != "block"), 2, False)
    try:
        alone = [run(tokens, BUGS[name].oracle, block) for name in (first, second)]
        both = run(tokens, BUGS[second].over(BUGS[first].oracle), block)
    except DoesNotApply:
        return
    right = {first, second}.union(*(names_of(judged(one, one, tokens)) for one in alone))
    said = names_of(judged(both, both, tokens))
    assert said <= right, f"{first} and {second} in block {block}: {said - right}"
