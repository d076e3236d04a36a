"""Biases and one tensor for Q, K and V: beside llama.cpp and transformers, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoints.c07_block as layer
import llama_ckpt
from llama_ckpt.capture import capture
from llama_ckpt.errors import OptionError, UnsupportedModelError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.making.export import export_weights
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama
from tests.gguf_files import T, write_llama

TOKENS = [1, 300, 4, 77, 111, 9, 77]
LENGTHS = {
    **{"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64, "attn_qkv": 128},
    **{"ffn_gate": 96, "ffn_up": 96, "ffn_down": 64},
}
ALL = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def biased_model(
    path: Path, *biases: str, fused: bool = False, type: T = T.F32, lacking: tuple[str, ...] = ()
) -> Path:
    """A small Llama of two blocks with those biases but `lacking`, as large as what they are added to."""
    draw = np.random.default_rng(5)
    tensors: dict[str, Any] = {}
    for number in range(2):
        for name in biases:
            tensors[f"blk.{number}.{name}.bias"] = draw.standard_normal(LENGTHS[name]).astype(np.float32)
        if fused:
            tensors |= {f"blk.{number}.attn_{one}.weight": None for one in "qkv"}
            whole = draw.standard_normal((128, 64)) / 8
            tensors[f"blk.{number}.attn_qkv.weight"] = whole.astype(np.float32)
    kept = {name: values for name, values in tensors.items() if name not in lacking}
    return write_llama(path, tensors=kept, type=type)


MODELS: dict[str, dict[str, Any]] = {
    "Qwen's": {"biases": ALL[:3]},
    "all": {"biases": ALL, "type": T.Q8_0},
    "feed-forward": {"biases": ALL[4:]},
    "fused": {"biases": (), "fused": True, "type": T.Q4_0},
    "fused and biased": {"biases": ("attn_qkv", "attn_output"), "fused": True},
    "in some blocks": {
        "biases": ALL,
        "lacking": (
            "blk.0.attn_q.bias",
            "blk.1.attn_output.bias",
            "blk.0.ffn_up.bias",
            "blk.1.ffn_down.bias",
        ),
    },
    "fused, in one block": {"biases": ("attn_qkv",), "fused": True, "lacking": ("blk.0.attn_qkv.bias",)},
}


@pytest.mark.llama_cpp
@pytest.mark.parametrize("name", MODELS)
def test_beside_llama_cpp(name: str, tmp_path: Path) -> None:
    options = dict(MODELS[name])
    model, out = biased_model(tmp_path / "m.gguf", *options.pop("biases"), **options), tmp_path / "dumps"
    capture(model, out=out, tokens=TOKENS, max_tokens=3)
    report = llama_ckpt.validate(model=model, dumps=out, device="cpu")
    assert {c.id: c.reason for c in report.checkpoints if c.verdict != "pass"} == {}
    assert report.exit_code == 0 and len(report.checkpoints) == 12


@pytest.mark.parametrize("missing", ["bq", "bv", "bo", "b_gate", "b_down"])
def test_a_bias_that_is_left_out_is_found(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = biased_model(tmp_path / "m.gguf", *ALL)
    function = {"bq": "qkv", "bv": "qkv", "bo": "attention"}.get(missing, "swiglu")
    right = getattr(layer, function)
    monkeypatch.setattr(layer, function, lambda *args, **given: right(*args, **{**given, missing: None}))
    report = llama_ckpt.validate(["7"], model=model, device="cpu", oracle_only=True)
    assert [one.verdict for one in report.checkpoints] == ["fail"]


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same_from_an_export(name: str, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    options = dict(MODELS[name])
    model = biased_model(tmp_path / "m.gguf", *options.pop("biases"), **options)
    export_weights(model, tmp_path / "hf" / "model.safetensors", layout="hf")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.inference_mode():
        wanted = theirs(torch.tensor([TOKENS])).logits[0]
    ours = llama_ckpt.load(model, device="cpu").logits(TOKENS)
    assert float((wanted - ours).norm() / ours.norm()) < 1e-5


def test_metas_layout_has_no_biases(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a model with biases: got meta"):
        export_weights(biased_model(tmp_path / "m.gguf", *ALL), tmp_path / "m.safetensors", layout="meta")


@pytest.mark.parametrize("name", ["blk.2.attn_q.bias", "blk.0.attn_norm.bias", "output.bias"])
def test_a_bias_without_a_place_is_refused(name: str, tmp_path: Path) -> None:
    file = GGUFFile(write_llama(tmp_path / "m.gguf", tensors={name: np.ones(64, np.float32)}))
    with pytest.raises(UnsupportedModelError, match="a bias here is not supported|blocks beyond it"):
        check_llama(file, LlamaConfig.from_gguf(file))
