"""Exported weights: every value where it belongs, in both layouts, and loadable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from typer.testing import CliRunner

import reference_dumps
from llama_ckpt.cli import app
from llama_ckpt.errors import OptionError
from llama_ckpt.gguf.file import open_gguf, weights_sha256
from llama_ckpt.making.export import export_weights
from llama_ckpt.making.export_layouts import halves_from_pairs
from llama_ckpt.making.seeded_model import make_seeded

MODEL = reference_dumps.embedded_model()


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with grouped heads, a head size of its own and tied output, quantized."""
    out = tmp_path_factory.mktemp("seeded") / "m.gguf"
    make_seeded(
        out, width=64, n_heads=4, n_kv_heads=2, head_dim=8, ffn=96, n_layers=2, vocab=320, seed=3,
        type="Q8_0", tied_output=True, rope_scale=2.0,
    )  # fmt: skip
    return out


def test_ggufs_names_and_order(grouped: Path, tmp_path: Path) -> None:
    (path,) = export_weights(grouped, tmp_path / "w.safetensors")
    file, tensors = open_gguf(grouped), load_file(path)
    assert set(tensors) == set(file.tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(tensor, file.float32(name)), name
    metadata = safe_open(path, "numpy").metadata()
    assert metadata["weights_sha256"] == weights_sha256(file)
    assert json.loads(metadata["config"])["n_kv_heads"] == 2


def test_hugging_faces_names_and_order(grouped: Path, tmp_path: Path) -> None:
    path, config = export_weights(grouped, tmp_path / "hf" / "model.safetensors", layout="hf")
    file, tensors = open_gguf(grouped), load_file(path)
    q = file.float32("blk.1.attn_q.weight").reshape(4, 8, 64)
    theirs = tensors["model.layers.1.self_attn.q_proj.weight"].reshape(4, 8, 64)
    assert np.array_equal(theirs[:, :4], q[:, 0::2]) and np.array_equal(theirs[:, 4:], q[:, 1::2])
    k = halves_from_pairs(file.float32("blk.0.attn_k.weight"), 2)
    assert np.array_equal(tensors["model.layers.0.self_attn.k_proj.weight"], k)
    for own, name in (
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("blk.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight"),
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ):
        assert np.array_equal(tensors[name], file.float32(own)), name
    assert "lm_head.weight" not in tensors and len(tensors) == len(file.tensors)
    written = json.loads(config.read_text())
    assert written["tie_word_embeddings"] and written["head_dim"] == 8 and written["num_key_value_heads"] == 2
    assert written["rope_parameters"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


def test_metas_names_and_order(grouped: Path, tmp_path: Path) -> None:
    path, params = export_weights(grouped, tmp_path / "consolidated.safetensors", layout="meta")
    file, tensors = open_gguf(grouped), load_file(path)
    for own, name in (
        ("blk.1.attn_q.weight", "layers.1.attention.wq.weight"),
        ("blk.0.attn_k.weight", "layers.0.attention.wk.weight"),
        ("blk.1.ffn_gate.weight", "layers.1.feed_forward.w1.weight"),
        ("blk.1.ffn_up.weight", "layers.1.feed_forward.w3.weight"),
        ("blk.0.ffn_down.weight", "layers.0.feed_forward.w2.weight"),
        ("blk.0.attn_norm.weight", "layers.0.attention_norm.weight"),
        ("token_embd.weight", "tok_embeddings.weight"),
        ("token_embd.weight", "output.weight"),
        ("output_norm.weight", "norm.weight"),
    ):
        assert np.array_equal(tensors[name], file.float32(own)), name
    assert len(tensors) == len(file.tensors) + 1, "Meta's program ties nothing: the head is there too"
    assert safe_open(path, "numpy").metadata()["weights_sha256"] == weights_sha256(file)
    assert params.name == "params.json" and json.loads(params.read_text())["n_kv_heads"] == 2


@pytest.mark.parametrize(
    ("width", "ffn", "wanted"), [(64, 96, 1), (64, 160, 1), (64, 176, 176), (96, 256, 256), (64, 512, 512)]
)
def test_metas_rule_leads_to_the_feed_forward_width(
    width: int, ffn: int, wanted: int, tmp_path: Path
) -> None:
    model = tmp_path / "m.gguf"
    make_seeded(model, width=width, n_heads=4, head_dim=8, ffn=ffn, n_layers=1, vocab=320, seed=1)
    _, beside = export_weights(model, tmp_path / "w.safetensors", layout="meta")
    params = json.loads(beside.read_text())
    hidden = int(2 * (4 * params["dim"]) / 3)  # as Meta's program has it
    hidden = int(params.get("ffn_dim_multiplier", 1.0) * hidden)
    multiple = params["multiple_of"]
    assert multiple * ((hidden + multiple - 1) // multiple) == ffn and multiple == wanted


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_to_nearest(dtype: str, grouped: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    (path,) = export_weights(grouped, tmp_path / "w.safetensors", dtype=dtype)
    for name, tensor in load_torch(path).items():
        wanted = torch.from_numpy(open_gguf(grouped).float32(name).copy()).to(getattr(torch, dtype))
        assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted), name
    assert "weights_sha256" not in safe_open(path, "numpy").metadata(), "rounded, they are other weights"


@pytest.mark.parametrize(("option", "value"), [("layout", "onnx"), ("dtype", "int8")])
def test_what_there_is_not_is_refused(option: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"--{option}: got {value}"):
        export_weights(MODEL, tmp_path / "w.safetensors", **{option: value})
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "hf" / "model.safetensors"
    done = CliRunner().invoke(app, ["export", "--layout", "hf", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert [line.partition(":")[0] for line in done.output.splitlines()] == [
        str(out),
        str(out.with_name("config.json")),
    ]


def test_transformers_computes_the_same_with_them(tmp_path: Path) -> None:
    """Its Llama, loaded from the export, gives llama.cpp's logits."""
    import torch
    from transformers import LlamaForCausalLM

    export_weights(MODEL, tmp_path / "model.safetensors", layout="hf")
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        ours = model(torch.tensor([[1, 15043]])).logits[0].numpy()
    from llama_ckpt.dumps.reference import open_dumps

    theirs = open_dumps(reference_dumps.dump_folder("f32")).dump("hello")["logits"]
    assert np.linalg.norm(ours - theirs) < 5e-6 * np.linalg.norm(theirs)
