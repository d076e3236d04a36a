"""The committed stand-ins of Llama 3 and Mixtral, beside what llama.cpp recorded of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import llama_ckpt
from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.ladder.discovery import ladder_of
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import embedded_model
from tools.make_stand_ins import PROMPTS, STAND_INS, bpe_vocabulary

FOLDER = embedded_model().parents[1]


@pytest.mark.parametrize("name", STAND_INS)
def test_the_ladder_passes(name: str) -> None:
    model = FOLDER / name / "model.gguf"
    config = LlamaConfig.from_gguf(open_gguf(model))
    report = llama_ckpt.validate(model=model, dumps=FOLDER / name / "f16", device="cpu")
    assert {c.id: c.reason for c in report.checkpoints if c.verdict != "pass"} == {}
    assert [c.id for c in report.checkpoints] == [one.id for one in ladder_of(config.n_experts)]
    assert all(c.compared == c.of > 0 for c in report.checkpoints) and report.exit_code == 0


def test_they_have_what_they_stand_for() -> None:
    llama, mixture = (LlamaConfig.from_gguf(open_gguf(FOLDER / name / "model.gguf")) for name in STAND_INS)
    assert len(llama.rope_factors) == llama.head_dim // 2 and max(llama.rope_factors) > 30
    assert llama.n_heads > llama.n_kv_heads and llama.tied_output
    assert open_gguf(FOLDER / "llama-3" / "model.gguf").metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert (mixture.n_experts, mixture.n_experts_used) == (3, 2)
    for name, prompt in PROMPTS.items():
        entry = open_dumps(FOLDER / name / "f16").entry("prompt")
        assert entry.prompt == prompt and len(entry.token_ids) > 4


@pytest.mark.parametrize("name", STAND_INS)
def test_they_are_made_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    vocabulary = embedded_model()
    if name == "llama-3":
        vocabulary = tmp_path / "vocabulary.gguf"
        bpe_vocabulary(vocabulary)
    made = make_seeded(tmp_path / "model.gguf", seed=1, type="F16", vocabulary=vocabulary, **STAND_INS[name])
    assert made.path.read_bytes() == (FOLDER / name / "model.gguf").read_bytes()
