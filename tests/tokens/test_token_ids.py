"""Models whose vocabulary is not supported: everything works on token ids, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType as V
from typer.testing import CliRunner

import llama_ckpt
from llama_ckpt.cli import app
from llama_ckpt.errors import ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.tokens.tokenizer import Tokenizer
from tests.gguf_files import write_llama

UNSUPPORTED = {"tokenizer.ggml.model": ("t5", V.STRING)}
NONE = {"tokenizer.ggml.model": ("none", V.STRING)}
TEXTS = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("ids") / "model.gguf", keys=UNSUPPORTED)


@pytest.fixture(scope="module")
def without_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    specials = [f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "unknown")]
    path = tmp_path_factory.mktemp("none") / "model.gguf"
    flag = "tokenizer.ggml.add_bos_token"
    return write_llama(path, keys=NONE, omit_keys=(*TEXTS, *specials, flag))


def said(*words: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


def test_a_tokenizer_of_ids(model: Path) -> None:
    tokenizer = Tokenizer.for_model(open_gguf(model), 320)
    assert tokenizer.unsupported is not None and "t5" in tokenizer.unsupported
    assert tokenizer.vocab_size == 320 and tokenizer.decode([5, 6]) == "[5][6]"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eog_ids) == (1, 2, {2})
    with pytest.raises(UnsupportedModelError, match="give token ids"):
        tokenizer.encode("Hello")


def test_ends_are_known_by_their_texts(tmp_path: Path) -> None:
    texts = [b"<unk>", b"<s>", b"<|im_end|>"] + [b"t%d" % i for i in range(317)]
    keys = {**UNSUPPORTED, "tokenizer.ggml.tokens": (texts, V.ARRAY, V.STRING)}
    path = write_llama(tmp_path / "m.gguf", keys=keys, omit_keys=("tokenizer.ggml.eos_token_id",))
    tokenizer = Tokenizer.for_model(open_gguf(path), 320)
    assert tokenizer.eos_id is None and tokenizer.eog_ids == {2}


def test_a_damaged_vocabulary_is_refused(tmp_path: Path) -> None:
    path = write_llama(
        tmp_path / "m.gguf", keys={**UNSUPPORTED, "tokenizer.ggml.eos_token_id": ("2", V.STRING)}
    )
    with pytest.raises(ModelFileError, match="eos_token_id"):
        llama_ckpt.load(path, device="cpu")


def test_a_file_without_a_vocabulary(without_vocabulary: Path) -> None:
    model = llama_ckpt.load(without_vocabulary, device="cpu")
    assert model.tokenizer.unsupported is not None and model.tokenizer.eog_ids == frozenset()
    assert "".join(llama_ckpt.generate(model, [1, 5], max_tokens=3)).count("[") == 3


def test_generate_takes_and_prints_ids(model: Path) -> None:
    done = said("generate", "--tokens", "1,300", "--model", model, "--max-tokens", "4", "--device", "cpu")
    assert done.exit_code == 0 and done.stdout.startswith("[")
    assert "token ids in brackets, not text" in done.stderr
    same = said("generate", "--tokens", "1,15043", "--max-tokens", "4", "--device", "cpu")
    text = said("generate", "Hello", "--max-tokens", "4", "--device", "cpu")
    assert same.stdout == text.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("Hello",), "give token ids"),
        (("--tokens", "1,x"), "--tokens: got '1,x'"),
        (("--tokens", "1,999"), "token id in the prompt: got 999"),
        ((), "got neither"),
        (("Hello", "--tokens", "1"), "got both"),
    ],
)
def test_what_generate_refuses(model: Path, words: tuple[str, ...], sentence: str) -> None:
    done = said("generate", *words, "--model", model, "--device", "cpu")
    assert done.exit_code == 2 and sentence in done.stderr and done.stderr.count("\n") == 1


def test_the_ladder_holds_on_ids(model: Path) -> None:
    report = llama_ckpt.validate(model=model, device="cpu", oracle_only=True)
    assert report.exit_code == 0 and len(report.checkpoints) == 12
    assert any("token ids" in note and "t5" in note for note in report.notes)


@pytest.mark.llama_cpp
def test_llama_cpp_is_recorded_on_ids(without_vocabulary: Path) -> None:
    report = llama_ckpt.validate(model=without_vocabulary, device="cpu")
    assert report.exit_code == 0 and report.compared
    assert any("token ids" in note for note in report.notes)


def test_inspect_shows_the_whole_table_of_what_is_refused(tmp_path: Path) -> None:
    keys = {
        **UNSUPPORTED,
        "llama.attention.causal": (False, V.BOOL),
        "llama.rope.scaling.type": ("yarn", V.STRING),
    }
    path = write_llama(tmp_path / "m.gguf", keys=keys)
    shown = said("inspect", path, "--tensors")
    assert shown.exit_code == 0
    wanted = ("n_layers", "tokenizer t5", "token ids only:", "not computable:", "blk.1.ffn_up.weight", "F32")
    assert all(text in shown.stdout for text in wanted)
    assert "yarn  llama.rope.scaling.type" in shown.stdout
    record = json.loads(said("inspect", path, "--json").stdout)
    assert record["config"]["n_layers"] == 2 and record["config"]["ffn"] == 96
    assert record["computable"] is False and "attention.causal" in record["reason"]
    assert (
        record["tokenizer"]["supported"] is False and record["further"]["llama.rope.scaling.type"] == "yarn"
    )


def test_inspect_shows_another_architecture(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", architecture="qwen9", keys={"qwen9.block_count": (7, V.UINT32)})
    record = json.loads(said("inspect", path, "--json").stdout)
    assert record["config"]["n_layers"] == 7 and "'qwen9'" in record["reason"]
