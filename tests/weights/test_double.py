"""A device without float64 computes every layer all the same: what needs it goes over the CPU.

torch's `meta` device stands for it: operations run there without values, and each tensor that they make is
looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from checkpoints.c01b_rope import rope, rope_frequencies
from checkpoints.c08_logits import logits
from checkpoints.c11_softmax import softmax
from llama_ckpt.errors import DeviceError
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.making.derive import derive
from llama_ckpt.model import pick_device
from llama_ckpt.weights import double
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.records import load_weights


class _NoFloat64(TorchDispatchMode):
    """Refuses float64 on `meta`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor) and one.device.type == "meta":
                assert one.dtype != torch.float64, f"{func} makes float64"
        return made


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(double, "WITHOUT", {"mps", "meta"})


@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q4_0"])
def test_the_whole_model_needs_none_there(
    type: str, embedded_model: Path, tmp_path: Path, without: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = embedded_model if type == "F16" else derive(embedded_model, type, tmp_path / "m.gguf").path
    file = open_gguf(path)
    config = LlamaConfig.from_gguf(file)
    weights = load_weights(file, config, "meta")
    ids = torch.zeros(3, dtype=torch.int64, device="meta")
    # There is no value to bring to the CPU; the device is all that counts here.
    monkeypatch.setattr("checkpoints.c01b_rope.double", lambda x: torch.zeros(x.shape, dtype=torch.float64))
    with _NoFloat64(), torch.inference_mode():
        row = logits(ids, weights, config=config, positions=ids)
        assert row.shape == (3, config.vocab_size) and row.device.type == "meta"


def test_the_check_sees_float64(embedded_model: Path) -> None:
    config = LlamaConfig.from_gguf(open_gguf(embedded_model))
    q = torch.zeros(3, config.n_heads, config.head_dim, device="meta")
    at = torch.zeros(3, dtype=torch.int64, device="meta")
    with _NoFloat64(), pytest.raises(AssertionError, match="float64"):
        rope(q, q, at, rope_frequencies(config, "meta"))


def test_values_that_go_over_the_cpu_are_the_same(
    embedded_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(1))
    wanted = softmax(x, temperature=0.7, top_k=20, top_p=0.9, min_p=0.05)
    monkeypatch.setattr(double, "WITHOUT", {"cpu"})
    assert torch.equal(softmax(x, temperature=0.7, top_k=20, top_p=0.9, min_p=0.05), wanted)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="it is there")
def test_apple_s_gpu_is_asked_for_by_name() -> None:
    with pytest.raises(DeviceError, match="device: got mps, wanted a torch with Apple's GPU"):
        pick_device("mps")
    with pytest.raises(DeviceError, match="wanted auto, cpu, cuda or mps"):
        pick_device("meta")
