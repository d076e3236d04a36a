"""transformers in half precision, as it is installed: right as its profile says, and found out else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.dumps.record import Recorded, record
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.making.export import export_weights
from tests.comparing.ported_llama import prompt, seeded

transformers = pytest.importorskip("transformers", reason="a GPU machine without a network may lack it")

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_weights(seeded(n_layers=1), folder / "model.safetensors", layout="hf")
    return folder


def recorded(folder: Path, dtype: str, attention: str) -> Recorded:
    options = {"dtype": DTYPES[dtype], "attn_implementation": attention}
    return record(transformers.LlamaForCausalLM.from_pretrained(folder, **options).eval(), prompt(12))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_rounds_as_its_profile_says(dtype: str, attention: str, exported: Path, tmp_path: Path) -> None:
    profile = f"{dtype}-torch" + ("-sdpa" if attention == "sdpa" else "")
    seen, path = recorded(exported, dtype, attention), tmp_path / "theirs.safetensors"
    seen.save(path)
    declared = compare_dump(path, model=seeded(n_layers=1), arithmetic=profile)
    assert declared.verdict == "pass", declared.reason
    assert declared.arithmetic is not None
    assert declared.arithmetic.left < declared.arithmetic.costs / 8
    wide = {name: np.asarray(torch.as_tensor(x).float()) for name, x in seen.tensors.items()}
    save_dump(path, wide, token_ids=seen.token_ids, positions=seen.positions)
    found = compare_dump(path, model=seeded(n_layers=1), partial=True)
    assert (found.verdict, found.exit_code) == ("arithmetic", 3), found.reason
    assert found.reason.endswith(f"declare it: --arithmetic {profile}")


@pytest.mark.parametrize(("dtype", "attention"), [("float16", "eager"), ("bfloat16", "sdpa")])
def test_a_cosine_may_fall_either_way(dtype: str, attention: str, tmp_path: Path) -> None:
    """Of many positions some lie in the middle of two numbers: these turn every head, and what is rounded."""
    model = seeded(n_layers=2, width=512, n_heads=8, n_kv_heads=2, ffn=768, vocab=512)
    export_weights(model, tmp_path / "model.safetensors", layout="hf")
    options = {"dtype": DTYPES[dtype], "attn_implementation": attention}
    there = transformers.LlamaForCausalLM.from_pretrained(tmp_path, **options).eval()
    record(there, prompt(100)).save(tmp_path / "theirs.safetensors")
    profile = f"{dtype}-torch" + ("-sdpa" if attention == "sdpa" else "")
    report = compare_dump(tmp_path / "theirs.safetensors", model=model, arithmetic=profile)
    assert report.verdict == "pass", report.reason


@pytest.mark.parametrize("declared", ["float32", "run.c"])
def test_float32_is_right_with_angles_in_float32(declared: str, exported: Path, tmp_path: Path) -> None:
    there = transformers.LlamaForCausalLM.from_pretrained(exported).eval()
    record(there, prompt(12)).save(tmp_path / "theirs.safetensors")
    report = compare_dump(tmp_path / "theirs.safetensors", model=seeded(n_layers=1), arithmetic=declared)
    assert report.verdict == "pass", report.reason
