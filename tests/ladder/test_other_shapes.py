"""Other people's models: shapes and types that the embedded one lacks, recorded from llama.cpp and judged.

Each model is made from a seed, captured as it is and as its float32 upcast, and climbed by the whole
ladder without a change to any layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama_ckpt.ladder.climb import validate
from llama_ckpt.ladder.discovery import ladder_of
from llama_ckpt.ladder.situations import QUICK
from llama_ckpt.making.derive import derive
from llama_ckpt.making.seeded_model import make_seeded
from tests.gguf_files import T, write_llama

pytestmark = pytest.mark.llama_cpp

SMALL: dict[str, Any] = {"width": 256, "n_heads": 8, "ffn": 512, "n_layers": 2, "vocab": 2048}

MODELS: dict[str, dict[str, Any]] = {
    "grouped heads": {**SMALL, "n_kv_heads": 2},
    "one key head": {**SMALL, "n_kv_heads": 1},
    "head size of its own": {**SMALL, "head_dim": 64},
    "head size 128": {"shape": "head-128"},
    "linear RoPE scaling": {**SMALL, "rope_scale": 4.0},
    "Llama 3's scaling": {"shape": "llama3-256"},
    "tied output": {**SMALL, "tied_output": True},
    "epsilon 1e-6": {**SMALL, "rms_norm_eps": 1e-6},
    "theta 1e6": {**SMALL, "rope_theta": 1e6},
    "keys left out": {"shape": "bare-256"},
    "experts": {"shape": "mixture-256"},
    "experts, Q4_K_M": {"shape": "mixture-256", "type": "Q4_K_M"},
    "one expert of three": {**SMALL, "n_experts": 3, "n_experts_used": 1},
    "Q4_K_M": {**SMALL, "type": "Q4_K_M"},
    "Q5_1": {**SMALL, "type": "Q5_1"},
    "Q3_K": {**SMALL, "type": "Q3_K_M"},
    "Q2_K": {**SMALL, "type": "Q2_K"},
    "Q5_K": {**SMALL, "type": "Q5_K_M"},
    "Q6_K": {**SMALL, "type": "Q6_K"},
    "IQ4_XS": {**SMALL, "type": "IQ4_XS"},
    "IQ4_NL": {**SMALL, "type": "IQ4_NL"},
    "BF16": {**SMALL, "type": "BF16"},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_ladder_passes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    make_seeded(path, seed=11, **MODELS[name])
    report = validate(model=path, device="cpu")
    n_experts = MODELS[name].get("n_experts", 0) or 4 * (MODELS[name].get("shape") == "mixture-256")
    assert [c.id for c in report.checkpoints] == [one.id for one in ladder_of(n_experts)]
    assert len(report.checkpoints) == 12
    assert {c.id: c.reason for c in report.checkpoints if c.verdict != "pass"} == {}
    assert all(c.compared == c.of > 0 for c in report.checkpoints)
    assert report.exit_code == 0
    # Nothing was judged by the oracle alone: every recording is llama.cpp's, the upcast's included.
    dumps = {point.dump.split("/")[0] for checkpoint in report.checkpoints for point in checkpoint.points}
    assert dumps - {one.label for one in QUICK} == {"as-is", "f32", "run"}


@pytest.mark.parametrize("type", [T.IQ1_M, T.IQ3_S, T.TQ1_0, T.NVFP4], ids=lambda type: type.name)
def test_the_ladder_passes_on_types_that_no_quantizer_here_writes(type: T, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"width": 256, "ffn": 512, "n_layers": 2, "vocab": 320}
    report = validate(model=write_llama(tmp_path / "model.gguf", type=type, **shape), device="cpu")
    assert {c.id: c.reason for c in report.checkpoints if c.verdict != "pass"} == {}
    assert report.exit_code == 0 and report.compared


@pytest.mark.parametrize("type", ["Q2_K", "Q4_K_M", "Q5_K_M"])
def test_the_ladder_passes_where_weights_have_a_mean(type: str, tmp_path: Path) -> None:
    """What all elements of a row are off by together no other evens out: sums with a mean are further off."""
    shape: dict[str, Any] = {"width": 256, "ffn": 512, "n_layers": 2, "vocab": 320}
    write_llama(tmp_path / "f32.gguf", mean=0.3, **shape)
    derive(tmp_path / "f32.gguf", type, tmp_path / "model.gguf")
    report = validate(model=tmp_path / "model.gguf", device="cpu")
    assert {c.id: c.reason for c in report.checkpoints if c.verdict != "pass"} == {}
    assert report.exit_code == 0 and report.compared
