"""Padded and packed rows of a live module are recorded with what it was handed, and judged by that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.record import record
from llama_ckpt.making.export import export_weights
from tests.dumps import torch_programs as programs

transformers = pytest.importorskip("transformers", reason="a GPU machine without a network may lack it")

FIRST, SECOND = [1, 40, 41], [1, 300, 7, 9, 12]
PADDED = {
    "input_ids": torch.tensor([[0, 0, *FIRST]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1]]),
    "position_ids": torch.tensor([[1, 1, 0, 1, 2]]),
}
PACKED = {
    "input_ids": torch.tensor([[*FIRST, *SECOND]]),
    "position_ids": torch.tensor([[*range(3), *range(5)]]),
}
SEEN = torch.block_diag(torch.ones(3, 3).tril(), torch.ones(5, 5).tril()).bool()[None, None]
ADDED = torch.zeros(SEEN.shape).masked_fill(~SEEN, torch.finfo(torch.float32).min)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return programs.seeded(tmp_path_factory.mktemp("seeded"))


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def theirs(model: Path, request: pytest.FixtureRequest) -> Any:
    export_weights(model, model.parent / "model.safetensors", layout="hf")
    made = transformers.LlamaForCausalLM
    how = request.param
    return made.from_pretrained(model.parent, dtype=torch.float32, attn_implementation=how).eval()


def judged(theirs: Any, inputs: dict[str, Any], model: Path, folder: Path) -> Comparison:
    record(theirs, inputs).save(folder / "theirs.safetensors")
    return compare_dump(folder / "theirs.safetensors", model=model)


@pytest.mark.parametrize(
    ("inputs", "sequences"),
    [
        (PADDED, [3]),
        (PACKED | {"attention_mask": ADDED}, [3, 5]),
        (PACKED | {"use_cache": False}, [3, 5]),
    ],
    ids=["left-padded", "a mask of each head", "positions that begin anew"],
)
def test_what_is_masked_passes(
    theirs: Any, inputs: dict[str, Any], sequences: list[int], model: Path, tmp_path: Path
) -> None:
    report = judged(theirs, inputs, model, tmp_path)
    assert report.verdict == "pass", (report.reason, report.findings)
    assert [len(one.rows) for one in report.sequences] == sequences


def test_a_static_cache_and_padding(theirs: Any, model: Path, tmp_path: Path) -> None:
    cache = transformers.StaticCache(theirs.config, max_cache_len=16)
    report = judged(theirs, PADDED | {"past_key_values": cache}, model, tmp_path)
    assert report.verdict == "pass", report.reason


def test_what_is_not_masked_is_found(theirs: Any, model: Path, tmp_path: Path) -> None:
    seen_all = PACKED | {
        "attention_mask": ADDED.new_zeros(1, 1, 8, 8).masked_fill(~torch.ones(8, 8).tril().bool(), -1e9)
    }
    report = judged(theirs, seen_all, model, tmp_path)
    assert [one.verdict for one in report.sequences] == ["pass", "fail"]
    assert report.first_wrong is not None
    if theirs.config._attn_implementation == "eager":
        assert report.first_wrong.name == "blk.0.attn_probs"
    assert report.findings[0].kind == "sees_others", "also where a fused call keeps the probabilities"
