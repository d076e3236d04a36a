"""transformers' Mixtral, recorded as it is installed: right, and named where a bug is put into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn.functional import linear

import llama_ckpt
import reference_dumps
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.errors import ModelFileError
from llama_ckpt.hugging_face.compare_weights import compare_weights
from llama_ckpt.making.export import export_weights
from tests.comparing.mixture import TOKENS, mixture, run
from tests.comparing.ported_llama import prompt

transformers = pytest.importorskip("transformers", reason="a GPU machine without a network may lack it")

COMMITTED = Path(reference_dumps.__file__).parent / "mixture" / "model.gguf"


@cache
def exported(model: Path) -> Path:
    folder = Path(mkdtemp(prefix="mixtral"))
    export_weights(model, folder / "model.safetensors", layout="hf")
    return folder


def said(
    model: Path,
    n: int,
    *,
    attention: str = "eager",
    dtype: torch.dtype = torch.float32,
    change: Callable[[Any], None] = lambda program: None,
) -> Comparison:
    """What `compare` says of the program's dump."""
    options = {"dtype": dtype, "attn_implementation": attention}
    program = transformers.MixtralForCausalLM.from_pretrained(exported(model), **options).eval()
    change(program)
    path = Path(mkdtemp(prefix="mixtral")) / "theirs.safetensors"
    llama_ckpt.record(program, prompt(n, program.config.vocab_size)).save(path)
    return compare_dump(path, model=model)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("n", [2, 20, 100])
@pytest.mark.parametrize("model", [COMMITTED, None], ids=["committed", "seeded"])
def test_it_passes(model: Path | None, n: int, attention: str) -> None:
    found = said(model or mixture(), n, attention=attention)
    assert found.verdict == "pass" and found.compared == found.of, found.reason
    assert {"blk.0.ffn_router", "blk.0.ffn_chosen", "blk.0.ffn_weights"} <= {p.name for p in found.points}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_passes_in_half_precision(dtype: torch.dtype) -> None:
    found = said(mixture(), 20, dtype=dtype)
    assert found.verdict == "pass", found.reason


def routing(route: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A program whose routers give what `route` makes of the scores: weights and experts."""

    def change(program: Any) -> None:
        for layer in program.model.layers:
            gate = layer.mlp.gate

            def forward(hidden: Any, gate: Any = gate) -> Any:
                scores = linear(hidden.reshape(-1, hidden.shape[-1]), gate.weight)
                return scores, *route(scores)

            gate.forward = forward

    return change


def not_divided(scores: Any) -> Any:
    return torch.topk(scores.softmax(-1), 2)


def by_sigmoid(scores: Any) -> Any:
    weights, chosen = torch.topk(scores.sigmoid(), 2)
    return weights / weights.sum(-1, keepdim=True), chosen


def first_alone(scores: Any) -> Any:
    weights, chosen = torch.topk(scores.softmax(-1), 1)
    return weights / weights.sum(-1, keepdim=True), chosen


def by_number(scores: Any) -> Any:
    weights, chosen = torch.topk(scores.softmax(-1), 2)
    return weights / weights.sum(-1, keepdim=True), chosen.sort(-1).values


def gate_and_up_exchanged(program: Any) -> None:
    for layer in program.model.layers:
        matrix = layer.mlp.experts.gate_up_proj
        matrix.data = torch.cat(matrix.data.chunk(2, 1)[::-1], 1)


@pytest.mark.parametrize(
    ("change", "point", "name"),
    [
        (routing(not_divided), "ffn_weights", "experts-not-normalized"),
        (routing(by_sigmoid), "ffn_weights", "experts-sigmoid"),
        (routing(first_alone), "ffn_out", "experts-top-one"),
        (routing(by_number), "ffn_chosen", "experts-order-by-number"),
        (gate_and_up_exchanged, "ffn_out", "ffn-gate-up-swapped"),
    ],
    ids=["not divided", "sigmoid", "the first alone", "by number", "gate and up exchanged"],
)
def test_a_bug_in_it_is_named(change: Callable[[Any], None], point: str, name: str) -> None:
    found = said(mixture(), 20, change=change)
    assert found.first_wrong is not None and found.first_wrong.name == f"blk.0.{point}"
    first = found.diagnoses[0]  # SiLU of up times gate is gate and up exchanged, and is said so
    best = first.named[0].name
    assert name in {best}.union(*(group for group in first.indistinguishable if best in group)), found.reason


def test_its_weights_are_those_of_the_file(tmp_path: Path) -> None:
    folder = exported(mixture())
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"] and config["model_type"] == "mixtral"
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (8, 2)
    assert {one.state for one in compare_weights(mixture(), folder)} == {"equal"}
    path = tmp_path / "theirs.safetensors"
    save_dump(path, run(), token_ids=TOKENS)
    assert compare_dump(path, model=folder).verdict == "pass"  # the folder is a model as the file is
    wanting = tmp_path / "wanting"
    wanting.mkdir()
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(tensors, wanting / "model.safetensors")
    (wanting / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="got 7 of 8 experts, wanted one of each expert, all alike"):
        compare_dump(path, model=wanting)
