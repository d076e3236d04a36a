"""Llama 3's divisors of RoPE's frequencies: read, checked, applied far out, and known again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoints.c07_block as block_module
import llama_ckpt
from checkpoints.c01b_rope import rope_frequencies
from llama_ckpt.capture import capture
from llama_ckpt.errors import ModelFileError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.making.export import export_weights
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.rope_factors import (
    LLAMA3_SCALINGS,
    Llama3Scaling,
    llama3_factors,
    llama3_scaling_of,
)
from tests.gguf_files import write_llama

TOKENS = [1, 300, 4, 77, 411, 9, 77]


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_seeded(tmp_path_factory.mktemp("llama3") / "m.gguf", shape="llama3-256").path


@pytest.mark.parametrize("scaling", [*LLAMA3_SCALINGS, Llama3Scaling(4.0, 2.0, 8.0, 2048)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_formula_is_that_of_transformers(scaling: Llama3Scaling, head_dim: int) -> None:
    from transformers import LlamaConfig as HfConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original_context,
    }
    config: Any = HfConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, rope_parameters=said
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors = llama3_factors(scaling, head_dim, 5e5)
    ours = 5e5 ** (-np.arange(0, head_dim, 2) / head_dim) / np.array(factors)
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-6)
    assert max(factors) == scaling.factor and min(factors) == 1.0


def test_known_scalings_are_known_again() -> None:
    for scaling in LLAMA3_SCALINGS:
        assert llama3_scaling_of(llama3_factors(scaling, 128, 5e5), 128, 5e5) == scaling
    assert llama3_scaling_of(llama3_factors(Llama3Scaling(7.0), 128, 5e5), 128, 5e5) is None


def test_a_file_with_divisors(llama3: Path) -> None:
    config = LlamaConfig.from_gguf(GGUFFile(llama3))
    assert config.rope_factors == llama3_factors(Llama3Scaling(8.0), 64, 5e5)
    plain = 5e5 ** (-np.arange(0, 64, 2) / 64)
    for frequencies in (rope_frequencies(config).numpy(), oracle.rope_frequencies(config)):
        np.testing.assert_allclose(plain / frequencies, config.rope_factors, rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones(7, np.float32), r"got F32 \[7\], wanted F32 \[8\]"),
        (np.ones((8, 1), np.float32), r"got F32 \[8, 1\], wanted"),
        (np.zeros(8, np.float32), "got 0.0, wanted positive"),
        (np.full(8, np.nan, np.float32), "got nan, wanted positive"),
    ],
)
def test_divisors_that_are_none(tmp_path: Path, values: Any, words: str) -> None:
    path = write_llama(tmp_path / "m.gguf", tensors={"rope_freqs.weight": values})
    with pytest.raises(ModelFileError, match=words):
        LlamaConfig.from_gguf(GGUFFile(path))


def test_divisors_that_are_left_out_are_found(llama3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(config: LlamaConfig, device: Any) -> torch.Tensor:
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        return torch.as_tensor(config.rope_theta, dtype=torch.float64) ** -pairs

    monkeypatch.setattr(block_module, "rope_frequencies", plain)
    report = llama_ckpt.validate(["7", "8"], model=llama3, device="cpu", oracle_only=True)
    assert [one.verdict for one in report.checkpoints] == ["fail", "fail"]


@pytest.mark.llama_cpp
def test_far_positions_beside_llama_cpp(llama3: Path, tmp_path: Path) -> None:
    out = tmp_path / "dumps"
    for start in (0, 8000, 131072 - len(TOKENS) - 3):
        capture(llama3, out=out, tokens=TOKENS, positions_from=start, max_tokens=3, name=f"from-{start}")
    report = llama_ckpt.validate(model=llama3, dumps=out, device="cpu")
    assert {c.id: c.reason for c in report.checkpoints if c.verdict != "pass"} == {}
    assert report.exit_code == 0 and len(report.checkpoints) == 12


@pytest.mark.parametrize("factor", [8.0, 7.0], ids=["Llama 3.1's", "any"])
def test_transformers_computes_the_same_from_an_export(tmp_path: Path, factor: float) -> None:
    from transformers import LlamaForCausalLM

    model = make_seeded(tmp_path / "m.gguf", shape="llama3-256", type="F32", llama3_factor=factor).path
    export_weights(model, tmp_path / "hf" / "model.safetensors", layout="hf")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    positions = list(range(3000, 3000 + len(TOKENS)))
    with torch.inference_mode():
        wanted = theirs(torch.tensor([TOKENS]), position_ids=torch.tensor([positions])).logits[0]
    ours = llama_ckpt.load(model, device="cpu").logits(TOKENS, positions)
    assert float((wanted - ours).norm() / ours.norm()) < 2e-4  # transformers' angles are float32


def test_an_export_for_metas_program(tmp_path: Path, llama3: Path) -> None:
    import json

    from llama_ckpt.errors import OptionError

    export_weights(llama3, tmp_path / "model.safetensors", layout="meta")
    params = json.loads((tmp_path / "params.json").read_text())
    assert params["use_scaled_rope"] is True and params["rope_scale_factor"] == 8
    odd = make_seeded(tmp_path / "m.gguf", shape="llama3-256", llama3_factor=7.0).path
    with pytest.raises(OptionError, match="got meta, .* wanted hf or gguf"):
        export_weights(odd, tmp_path / "odd.safetensors", layout="meta")
