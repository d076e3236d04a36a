"""A long prompt recorded in the memory of a block or two."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llama_ckpt as lc
from llama_ckpt.errors import OptionError
from llama_ckpt.making.export import export_weights
from tests.comparing.ported_llama import prompt, seeded

transformers = pytest.importorskip("transformers", reason="a GPU machine without a network may lack it")

LAYERS, TOKENS = 8, 250


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("hf")
    export_weights(seeded(n_layers=LAYERS), folder / "model.safetensors", layout="hf")
    made = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return made.eval()


def recorded(theirs: Any, scratch: Path | None) -> tuple[Any, int]:
    """What is recorded, and the most bytes of arrays that were in memory meanwhile."""
    tracemalloc.start()
    made = lc.record(theirs, prompt(TOKENS), scratch=scratch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return made, peak


def test_memory_holds_a_block_or_two_and_the_dump_is_the_same(theirs: Any, tmp_path: Path) -> None:
    whole, in_memory = recorded(theirs, None)
    parted, in_scratch = recorded(theirs, tmp_path)
    assert sum(x.nbytes for x in whole.tensors.values()) < in_memory
    assert in_scratch < in_memory / 3
    for name, x in whole.tensors.items():
        assert np.array_equal(x, parted.tensors[name]), name
    for one, path in ((whole, "whole"), (parted, "parted")):
        one.save(tmp_path / f"{path}.safetensors")
    written = [(tmp_path / f"{path}.safetensors").read_bytes() for path in ("whole", "parted")]
    assert written[0] == written[1]
    report = lc.compare(tmp_path / "parted.safetensors", model=seeded(n_layers=LAYERS))
    assert report.verdict == "pass", report.reason


def test_the_folder_goes_with_its_tensors(theirs: Any, tmp_path: Path) -> None:
    made, _ = recorded(theirs, tmp_path)
    assert [path.name[:11] for path in tmp_path.iterdir()] == [".llama-ckpt"]
    del made
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_calls_of_a_context_too(theirs: Any, tmp_path: Path) -> None:
    with lc.recording(theirs, scratch=tmp_path) as run, torch.no_grad():
        theirs(torch.tensor([prompt(TOKENS)]))
    assert isinstance(run.calls[0]["blk.0.attn_scores"], np.memmap) and list(tmp_path.iterdir())
    run.save(tmp_path / "run.safetensors")
    assert lc.compare(tmp_path / "run.safetensors", model=seeded(n_layers=LAYERS)).verdict == "pass"


def test_no_such_folder(theirs: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="scratch: got .*nowhere: No such file"):
        lc.record(theirs, [1, 2], scratch=tmp_path / "nowhere")
