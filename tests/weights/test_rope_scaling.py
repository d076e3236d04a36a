"""RoPE's scaling as files say it: beside llama.cpp, beside transformers, and refused where it is not said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llama_ckpt
from checkpoints.c01b_rope import rope_frequencies, rope_magnitude
from llama_ckpt.capture import capture
from llama_ckpt.errors import DumpError, LlamaCkptError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.making.export import export_weights
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.rope_scaling import padded_context
from tests.gguf_files import V, write_llama

TOKENS = [1, 300, 4, 77, 111, 9, 77]
YARN: dict[str, Any] = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
LONG: dict[str, Any] = {"type": "longrope", "factor": 2.0, "attn_factor": 1.1}
SCALINGS: dict[str, dict[str, Any]] = {
    "yarn": YARN,
    "yarn and the file's factor": {**YARN, "attn_factor": 1.3, "yarn_attn_factor": 9.0},
    "keys of other architectures": {
        **{**YARN, "yarn_ext_factor": 0.5, "yarn_attn_factor": 1.2, "yarn_log_multiplier": 0.7},
        **{"original_context_length": 2048, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0},
    },
    "yarn that shrinks": {"type": "yarn", "factor": 0.5},
    "linear's attention": {"type": "linear", "factor": 4.0, "attn_factor": 1.2},
    "none": {"type": "none", "factor": 4.0},
    "longrope, short": {**LONG, "original_context_length": 256},
    "longrope, long": {**LONG, "original_context_length": 255},
}


def scaled_model(path: Path, said: dict[str, Any], **options: Any) -> Path:
    """A small Llama whose metadata say that of RoPE's scaling, with LongRoPE's lists where asked for."""
    kinds = {str: V.STRING, int: V.UINT32, float: V.FLOAT32}
    keys = {f"llama.rope.scaling.{name}": (value, kinds[type(value)]) for name, value in said.items()}
    keys["llama.context_length"] = (4096, V.UINT32)
    draw = np.random.default_rng(3)
    names = [f"rope_factors_{which}.weight" for which in ("long", "short") if said.get("type") == "longrope"]
    lists = {name: (1 + 3 * draw.random(8)).astype(np.float32) for name in names}
    return write_llama(path, keys=keys, tensors=lists, **options)


@pytest.mark.llama_cpp
@pytest.mark.parametrize("name", SCALINGS)
def test_beside_llama_cpp(name: str, tmp_path: Path) -> None:
    model, out = scaled_model(tmp_path / "m.gguf", SCALINGS[name], n_layers=1), tmp_path / "dumps"
    capture(model, out=out, tokens=TOKENS, positions_from=900, max_tokens=3)
    whole = None if name == "yarn" else ["1B", "7", "8", "12"]
    report = llama_ckpt.validate(whole, model=model, dumps=out, device="cpu")
    assert {c.id: c.reason for c in report.checkpoints if c.verdict != "pass"} == {}
    assert report.exit_code == 0 and len(report.checkpoints) == len(whole or range(12))
    judged = [point.verdict for one in report.checkpoints for point in one.points]
    # llama.cpp's angles are float32, which counts at position 900; another scaling would be off by far more.
    assert max(one.err_reference for one in judged if one.err_reference == one.err_reference) < 1e-3


@pytest.mark.llama_cpp
@pytest.mark.parametrize("changed", [{"original_context_length": 65}, {"attn_factor": 1.001}], ids=str)
def test_a_recording_of_another_scaling_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    capture(scaled_model(tmp_path / "m.gguf", YARN), out=tmp_path / "dumps", tokens=TOKENS, max_tokens=0)
    other = scaled_model(tmp_path / "other.gguf", {**YARN, **changed})
    with pytest.raises(DumpError, match=r"(yarn_original_context|rope_attention_factor) of .*other.gguf"):
        llama_ckpt.validate(model=other, dumps=tmp_path / "dumps", device="cpu")


def test_what_is_left_out_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpoints.c07_block as layer

    model = scaled_model(tmp_path / "m.gguf", YARN)
    monkeypatch.setattr(layer, "magnified", lambda config: {})
    report = llama_ckpt.validate(["7", "8"], model=model, device="cpu", oracle_only=True)
    assert [one.verdict for one in report.checkpoints] == ["fail"] * 2


@pytest.mark.parametrize("name", SCALINGS)
def test_layers_and_oracle_agree(name: str, tmp_path: Path) -> None:
    config = LlamaConfig.from_gguf(GGUFFile(scaled_model(tmp_path / "m.gguf", SCALINGS[name])))
    np.testing.assert_allclose(rope_frequencies(config).numpy(), oracle.rope_frequencies(config), rtol=1e-14)
    assert rope_magnitude(config) == pytest.approx(oracle.rope_magnitude(config), rel=1e-14)


@pytest.mark.parametrize("said", [YARN, {**LONG, "factor": 1.0}], ids=str)
def test_transformers_computes_the_same_from_an_export(said: dict[str, Any], tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    model = scaled_model(tmp_path / "m.gguf", said)
    export_weights(model, tmp_path / "hf" / "model.safetensors", layout="hf")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    positions = list(range(300, 300 + len(TOKENS)))
    with torch.inference_mode():
        wanted = theirs(torch.tensor([TOKENS]), position_ids=torch.tensor([positions])).logits[0]
    ours = llama_ckpt.load(model, device="cpu").logits(TOKENS, positions)
    assert float((wanted - ours).norm() / ours.norm()) < 2e-5  # transformers' angles are float32


def test_a_factor_of_the_files_is_where_llama_cpp_and_transformers_part(tmp_path: Path) -> None:
    """llama.cpp multiplies it onto YaRN's own; transformers' `attention_factor` is in its place."""
    from transformers import LlamaConfig as HfConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = {**YARN, "attn_factor": 1.5}
    config = LlamaConfig.from_gguf(GGUFFile(scaled_model(tmp_path / "m.gguf", said)))
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    theirs: Any = HfConfig(
        hidden_size=64, num_attention_heads=4, rope_parameters={**rope, "attention_factor": 1.5}
    )
    turns, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    np.testing.assert_allclose(turns.numpy(), rope_frequencies(config).numpy(), rtol=1e-6)
    assert factor == 1.5
    assert rope_magnitude(config) == pytest.approx(1.5 * (1 + 0.1 * np.log(4)))


def test_longropes_list_is_that_of_the_runs_context(tmp_path: Path) -> None:
    said = {**LONG, "original_context_length": 300}
    config = LlamaConfig.from_gguf(GGUFFile(scaled_model(tmp_path / "m.gguf", said)))
    assert config.for_context(300) is config
    assert config.for_context(301).rope_factors == config.rope_long_factors != config.rope_factors
    assert [padded_context(n) for n in (1, 256, 257)] == [256, 256, 512]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"type": "ntk"}, "rope.scaling.type: got 'ntk', wanted one of none, linear, yarn, longrope"),
        ({**YARN, "factor": -1.0}, "wanted a positive, finite number"),
        ({"attn_factor": 0.0}, "attn_factor: got 0.0, wanted a positive, finite number"),
    ],
)
def test_what_cannot_be_is_refused(said: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(LlamaCkptError, match=words):
        LlamaConfig.from_gguf(GGUFFile(scaled_model(tmp_path / "m.gguf", said)))


def test_one_list_of_two_is_refused(tmp_path: Path) -> None:
    keys = {"llama.rope.scaling.type": ("longrope", V.STRING)}
    lists = {"rope_factors_long.weight": np.ones(8, np.float32)}
    path = write_llama(tmp_path / "m.gguf", keys=keys, tensors=lists)
    with pytest.raises(LlamaCkptError, match=r"rope_factors_short\.weight: got none, wanted one, beside"):
        LlamaConfig.from_gguf(GGUFFile(path))
