"""Recording live modules: transformers' Llama whole, and modules of one's own by a mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import llama_ckpt
import reference_dumps
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.dumps.record import record
from llama_ckpt.errors import OptionError, ShapeError
from llama_ckpt.gguf.file import open_gguf, weights_sha256
from llama_ckpt.making.export import export_weights
from llama_ckpt.making.seeded_model import make_seeded

transformers = pytest.importorskip("transformers", reason="a GPU machine without a network may lack it")
pytest.importorskip("transformers.masking_utils")

MODEL = reference_dumps.embedded_model()
EIGHT = [1, 1126, 4177, 1497, 29892, 2803, 727, 367]
ALL = 3 + 17 * 32


def loaded(model: Path, folder: Path) -> Any:
    """transformers' Llama with a GGUF file's weights."""
    export_weights(model, folder / "model.safetensors", layout="hf")
    made = transformers.LlamaForCausalLM
    return made.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loaded(MODEL, tmp_path_factory.mktemp("hf"))


def test_transformers_llama_is_recorded_whole_and_passes(theirs: Any, tmp_path: Path) -> None:
    before = theirs.config._attn_implementation
    recorded = llama_ckpt.record(theirs, EIGHT)
    assert len(recorded.tensors) == ALL and recorded.token_ids == tuple(EIGHT)
    assert recorded.positions == tuple(range(8)) and recorded.dtype == "float32"
    assert "RoPE turns pairs (i, i + head_dim/2)" in recorded.notes
    assert theirs.config._attn_implementation == before, "the model is left as it was"
    recorded.save(tmp_path / "theirs.safetensors", weights_sha256=weights_sha256(open_gguf(MODEL)))
    report = compare_dump(tmp_path / "theirs.safetensors")
    assert report.verdict == "pass", report.reason
    assert (report.compared, report.of) == (ALL, ALL)
    assert any("q and k lie in half-split order" in note and "undone" in note for note in report.notes)


def test_recording_changes_nothing(theirs: Any) -> None:
    ids = torch.tensor([EIGHT])
    with torch.inference_mode():
        before = theirs(ids).logits
        recorded = record(theirs, EIGHT)
        assert torch.equal(theirs(ids).logits, before)
    assert not [module for module in theirs.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert np.array_equal(recorded.tensors["logits"], before[0].numpy()), "the program that runs is theirs"


def forgotten_scale(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **options: Any
) -> Any:
    """An attention of somebody's own, registered with transformers, which never uses `scaling`."""
    groups = query.shape[1] // key.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = query @ k.transpose(2, 3) + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).contiguous(), None


def fused_without_scale(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **options: Any
) -> Any:
    """The same by torch's fused function, which then never shows a score."""
    context = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=1.0, enable_gqa=True)
    return context.transpose(1, 2).contiguous(), None


@pytest.mark.parametrize(
    ("attention", "first"),
    [(forgotten_scale, "blk.0.attn_probs"), (fused_without_scale, "blk.0.attn_context")],
)
def test_an_attention_of_its_own_whose_scale_is_forgotten_is_named(
    theirs: Any, tmp_path: Path, attention: Any, first: str
) -> None:
    """The model's own function runs and is watched: no other is put in its place."""
    name = attention.__name__
    transformers.AttentionInterface.register(name, attention)
    masks = transformers.masking_utils
    masks.AttentionMaskInterface.register(name, masks.eager_mask)
    try:
        theirs.set_attn_implementation(name)
        record(theirs, EIGHT).save(tmp_path / "theirs.safetensors")
    finally:
        theirs.set_attn_implementation("eager")
    report = compare_dump(tmp_path / "theirs.safetensors")
    assert report.first_wrong is not None
    seen = attention is forgotten_scale
    assert (report.first_wrong.name, report.first_wrong.made) == (first, "here" if seen else "between")
    assert "the scores are not divided by sqrt(head_dim)" in report.diagnoses[0].sentence()
    assert not report.findings, "what a fused call keeps inside is declared, not missing"


def test_grouped_heads_and_positions_of_ones_own(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    make_seeded(model, width=64, n_heads=4, n_kv_heads=2, head_dim=8, ffn=96, n_layers=2, vocab=320, seed=3)
    module = loaded(model, tmp_path)
    at = torch.tensor([[5, 6, 7]])
    recorded = record(module, {"input_ids": torch.tensor([[1, 40, 41]]), "position_ids": at})
    assert recorded.positions == (5, 6, 7)
    assert recorded.tensors["blk.1.k_rope"].shape == (3, 2, 8)
    assert recorded.tensors["blk.1.attn_scores"].shape == (3, 4, 3)
    recorded.save(tmp_path / "theirs.safetensors")
    report = compare_dump(tmp_path / "theirs.safetensors", model=model)
    assert report.verdict == "pass", report.reason


def test_a_bug_in_their_module_is_found(theirs: Any, tmp_path: Path) -> None:
    norms = [layer.post_attention_layernorm for layer in theirs.model.layers]
    try:
        for norm in norms:
            norm.variance_epsilon = 1e-3
        record(theirs, EIGHT).save(tmp_path / "theirs.safetensors")
    finally:
        for norm in norms:
            norm.variance_epsilon = theirs.config.rms_norm_eps
    report = compare_dump(tmp_path / "theirs.safetensors")
    assert report.first_wrong is not None
    assert (report.first_wrong.name, report.first_wrong.made) == ("blk.0.ffn_norm", "here")


def test_one_token_cannot_show_its_layout(theirs: Any, tmp_path: Path) -> None:
    recorded = record(theirs, torch.tensor([1]))
    assert not any("RoPE" in note for note in recorded.notes), "position 0 is not turned"
    recorded.save(tmp_path / "theirs.safetensors")
    assert compare_dump(tmp_path / "theirs.safetensors").verdict == "pass"


class Mine(nn.Module):
    """A module of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Identity(), nn.Linear(4, 4)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        x.add_(1.0)  # what was recorded must not change with the buffer
        return x


def test_a_module_of_ones_own_by_a_mapping() -> None:
    module, x = Mine(), torch.ones(3, 4)
    mapping = {
        "layers.{N}.0": "blk.{N}.attn_norm",
        "layers.{N}.1:input": "blk.{N}.ffn_inp",
        "layers.{N}": "blk.{N}.out",
    }
    recorded = record(module, x, mapping=mapping)
    assert set(recorded.tensors) == {f"blk.{n}.{p}" for n in (0, 1) for p in ("attn_norm", "ffn_inp", "out")}
    with torch.inference_mode():
        first = module.layers[0](x)
        last = module.layers[1](first)
    assert np.array_equal(recorded.tensors["blk.0.out"], first.numpy())
    assert np.array_equal(recorded.tensors["blk.1.out"], last.numpy())
    assert recorded.token_ids is None and recorded.positions is None


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (None, "got none for Mine, wanted paths of submodules"),
        ({"layer.{N}": "blk.{N}.out"}, "got layer.{N}, wanted the path of a submodule"),
        ({"layers.{N}": "blk.0.out"}, "{N} once in both"),
        ({"layers.{N}": "blk.{N}.end"}, "wanted a point"),
        ({"layers.0": "logits.0"}, "wanted a point"),
    ],
)
def test_a_wrong_mapping_is_one_sentence(mapping: dict[str, str] | None, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        record(Mine(), torch.ones(3, 4), mapping=mapping)


def test_several_sequences_lie_one_after_the_other(theirs: Any) -> None:
    recorded = record(theirs, torch.tensor([[1, 2], [1, 3]]))
    assert recorded.token_ids == (1, 2, 1, 3) and recorded.positions == (0, 1, 0, 1)
    assert recorded.rows is not None and recorded.rows.sequences == (0, 0, 1, 1)
    alone = record(theirs, torch.tensor([[1, 3]]))
    assert np.allclose(recorded.tensors["logits"][2:], alone.tensors["logits"], atol=1e-5)
    assert recorded.tensors["blk.0.attn_probs"].shape[::2] == (4, 2)
    assert not theirs.lm_head._forward_hooks


def test_a_point_is_recorded_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.Identity()

        def forward(self, x: torch.Tensor) -> Any:
            return self.norm(self.norm(x))

    with pytest.raises(ShapeError, match="output_norm: got two tensors in one call"):
        record(Twice(), torch.ones(3, 4), mapping={"norm": "output_norm"})
