"""llama.cpp's own steps in the ladder: explained by its arithmetic, and a changed product is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_ckpt.capture import Take, capture_takes
from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.ladder.climb import validate
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.ladder.reference_steps import arithmetic_of_recording
from llama_ckpt.ladder.trial import Trial
from llama_ckpt.making.seeded_model import make_seeded
from reference_dumps import dump_folder
from tests.checkpoints.dump_trials import DumpRun

PRODUCTS = {"2": "blk.0.v", "3": "blk.0.attn_out", "6": "blk.0.ffn_up", "8": "logits"}
"""A checkpoint and a product that it answers for."""


def own(trial: Trial, checkpoint: str) -> dict[str, PointVerdict]:
    (found,) = (one for one in discover() if one.id == checkpoint)
    only = "output_logits" if checkpoint == "8" else None  # not all the blocks
    return {one.name: one for one in trial.judge_own(found, only) if not one.variant}


def altered(trial: Trial, name: str, change: Callable[[Any], Any]) -> Trial:
    tensors = dict(trial.recording.tensors)
    tensors[name] = change(np.array(tensors[name]))
    return replace(trial, recording=replace(trial.recording, tensors=tensors))


def one_element(x: Any) -> Any:
    x[-1, ..., 3] += 1e-4 * np.sqrt(np.mean(x * x))
    return x


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_what_llama_cpp_is_off_by_has_its_reason_and_its_remainder(kind: str) -> None:
    trial = DumpRun(f"{kind}/hello").trial()
    for checkpoint, product in PRODUCTS.items():
        found = own(trial, checkpoint)
        asked = [one for one in found.values() if one.explained is not None]
        assert product in {one.name for one in asked}
        for one in asked:
            assert one.verdict == "pass" and one.explained, one.reason
            assert one.left < 1e-6
        assert found[product].costs > 1e-4
        assert "its arithmetic (llama.cpp-cpu) costs" in found[product].reason


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("checkpoint", PRODUCTS)
@pytest.mark.parametrize("change", [lambda x: x * (1 + 1e-4), one_element], ids=["all", "one element"])
def test_one_altered_product_is_noticed(kind: str, checkpoint: str, change: Callable[[Any], Any]) -> None:
    """By 1e-4, which llama.cpp's own rounding hides many times over in quantized files."""
    name = PRODUCTS[checkpoint]
    found = own(altered(DumpRun(f"{kind}/hello").trial(), name, change), checkpoint)[name]
    assert (found.verdict, found.blame, found.explained) == ("pass", "reference", False)
    assert "which is not float32's" in found.reason


def test_the_checkpoint_says_so(tmp_path: Path) -> None:
    result = validate(["6"], dumps=dump_folder("q4_0"), device="cpu").checkpoints[0]
    assert "its arithmetic, llama.cpp-cpu, costs" in result.reason and "beyond" not in result.reason


@pytest.mark.llama_cpp
def test_a_mix_of_types_recorded_here(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    make_seeded(
        model, width=256, n_heads=4, n_kv_heads=2, ffn=512, n_layers=2, vocab=320, seed=2, type="Q4_K_M"
    )
    take = Take(tokens=tuple(1 + 7 * i % 300 for i in range(20)), max_tokens=0, name="one")
    capture_takes(model, [take], out=tmp_path / "dumps")
    report = validate(["2", "3", "6"], model=model, dumps=tmp_path / "dumps", device="cpu")
    asked = [p.verdict for c in report.checkpoints for p in c.points if p.verdict.explained is not None]
    assert len(asked) >= 12 and all(one.explained for one in asked)
    assert max(one.left for one in asked) < 1e-6 < 1e-3 < max(one.costs for one in asked)


def test_of_another_machine_it_is_not_known_what_it_rounds() -> None:
    producer = open_dumps(dump_folder("q4_0")).manifest.producer
    found = arithmetic_of_recording(producer)
    assert found is not None and found.name == "llama.cpp-cpu"
    assert arithmetic_of_recording(replace(producer, system_info="CPU : NEON = 1")) is None
    half = arithmetic_of_recording(replace(producer, type_k="f16", type_v="f16"))
    assert half is not None and half.name == "llama.cpp-cpu-f16-cache"
