"""From a file to a device: the bytes that stand there, wherever their rows go, and nothing half done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as T

from llama_ckpt.engine.weights import EngineWeights
from llama_ckpt.errors import ModelFileError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.model import load
from llama_ckpt.weights import loading
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.loading import fill
from llama_ckpt.weights.quants import PackedWeight, Weight
from llama_ckpt.weights.records import ModelWeights, load_weights
from tests.gguf_files import write_llama


def written(tmp_path: Path, type: T = T.F16) -> GGUFFile:
    return GGUFFile(write_llama(tmp_path / "m.gguf", width=256, ffn=512, head_dim=64, vocab=16, type=type))


def poisoned(file: GGUFFile, every: int = 1) -> dict[str, torch.Tensor]:
    """Places for all tensors, rows `every` apart."""
    return {
        name: torch.full((info.n_rows * every, info.row_bytes), 0xA5, dtype=torch.uint8)[::every]
        for name, info in file.tensors.items()
    }


@pytest.mark.parametrize("type", [T.F32, T.Q4_0, T.Q6_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("every", [1, 2], ids=["together", "rows apart"])
def test_every_tensor_is_read_to_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type: T, every: int
) -> None:
    monkeypatch.setattr(loading, "_PIECE", 5000)  # several pieces a tensor, and not whole ones
    file = written(tmp_path, type)
    places = poisoned(file, every)
    fill(file, places)
    for name, place in places.items():
        assert torch.equal(place, torch.from_numpy(file.raw(name).copy())), name


def test_progress_grows_to_the_total(tmp_path: Path) -> None:
    file, told = written(tmp_path), []
    places = poisoned(file)
    fill(file, places, lambda done, total: told.append((done, total)))
    size = sum(place.numel() for place in places.values())
    assert told[-1] == (size, size)
    assert told == sorted(told)


def test_a_file_that_was_changed_since_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path)
    os.utime(file.path, ns=(1, 1))
    with pytest.raises(ModelFileError, match="has changed since"):
        fill(file, poisoned(file))
    file.path.unlink()
    with pytest.raises(ModelFileError, match="cannot be opened again"):
        fill(file, poisoned(file))


def test_a_file_that_ends_early_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path)
    monkeypatch.setattr(os, "preadv", lambda descriptor, memory, offset: 0)
    with pytest.raises(ModelFileError, match="its end at byte"):
        fill(file, poisoned(file))


def test_a_progress_that_fails_ends_the_reading(tmp_path: Path) -> None:
    file = written(tmp_path)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(file, poisoned(file), interrupt)


def memory(w: Weight) -> torch.Tensor:
    return w.raw if isinstance(w, PackedWeight) else w


def everything(weights: ModelWeights) -> list[torch.Tensor]:
    blocks = [w for block in weights.blocks for w in vars(block).values() if w is not None]
    return [memory(w) for w in (weights.token_embd, weights.output_norm, weights.output, *blocks)]


@pytest.mark.cuda
@pytest.mark.parametrize("type", [T.F32, T.F16, T.Q8_0, T.Q4_K], ids=lambda kind: kind.name)
def test_the_device_holds_what_the_file_does(tmp_path: Path, type: T) -> None:
    file = written(tmp_path, type)
    config = LlamaConfig.from_gguf(file)
    told: list[tuple[int, int]] = []
    there = load_weights(file, config, "cuda", lambda *done: told.append(done))
    for ours, mapped in zip(everything(there), everything(load_weights(file, config)), strict=True):
        assert torch.equal(ours.cpu(), mapped)
    assert told[-1][0] == told[-1][1] == sum(info.nbytes for info in file.tensors.values())


@pytest.mark.cuda
def test_the_engine_copies_no_float16_matrix(tmp_path: Path) -> None:
    model = load(written(tmp_path).path, device="cuda")
    weights = EngineWeights(model.weights, exact=False)
    for block, own in zip(model.weights.blocks, weights.blocks, strict=True):
        (_, qkv), *rest = own.qkv
        assert not rest
        for ours, theirs in ((block.wq, qkv), (block.w_gate, own.gate_up), (block.wo, own.wo)):
            assert memory(ours).data_ptr() == theirs.q.data_ptr()
