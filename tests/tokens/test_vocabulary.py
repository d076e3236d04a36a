"""Vocabularies other than the real one, and damaged ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llama_ckpt.errors import ModelFileError, TokenizerError, UnsupportedModelError
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.tokens.vocabulary import read_vocabulary

BYTES = [b"<0x%02X>" % byte for byte in range(256)]


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Path) -> Tokenizer:
    return Tokenizer.from_gguf(open_gguf(embedded_model))


def test_without_a_space_token_the_space_is_bytes() -> None:
    tokenizer = Tokenizer([b"<unk>", b"<s>", b"</s>", *BYTES, b"a"], types=[2, 3, 3] + [6] * 256 + [1])
    assert tokenizer.encode("a a") == [1, 229, 153, 132, 259, 229, 153, 132, 259]
    assert tokenizer.decode(tokenizer.encode("a a é")) == "a a é"


def test_equal_scores_merge_from_the_left() -> None:
    tokenizer = Tokenizer([b"a", b"aa", b"b"], add_bos=False, add_space_prefix=False, eos_id=None)
    assert tokenizer.encode("aaab") == [1, 0, 2]


@pytest.mark.parametrize("token", [-1, 32_000, 1 << 40])
def test_an_id_outside_the_vocabulary(tokenizer: Tokenizer, token: int) -> None:
    for call in (tokenizer.piece, lambda t: tokenizer.decode([t]), lambda t: tokenizer.decode_bytes([1, t])):
        with pytest.raises(TokenizerError, match=rf"got {token}, wanted 0 to 31999"):
            call(token)


def test_a_text_that_the_vocabulary_cannot_hold() -> None:
    tokenizer = Tokenizer([b"a"], bos_id=None, eos_id=None, add_bos=False, add_space_prefix=False)
    assert tokenizer.encode("aa") == [0, 0]
    with pytest.raises(TokenizerError, match="byte 0x62"):
        tokenizer.encode("ab")
    with pytest.raises(TokenizerError, match="no BOS token"):
        tokenizer.encode("a", add_bos=True)


@pytest.mark.parametrize("model", [None, "t5", "bert", 3])
def test_another_kind_of_tokenizer(model: str | None) -> None:
    with pytest.raises(UnsupportedModelError, match="tokenizer.ggml.model"):
        read_vocabulary({} if model is None else {"tokenizer.ggml.model": model})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", None),
        ("tokens", []),
        ("tokens", [b"a", b"a"]),
        ("tokens", 3),
        ("scores", np.zeros(1, np.float32)),
        ("scores", np.array([0, np.nan], np.float32)),
        ("token_type", [1]),
        ("token_type", [1, 6]),
        ("bos_token_id", -1),
        ("eos_token_id", "2"),
        ("add_bos_token", 1),
        ("add_space_prefix", "yes"),
    ],
)
def test_a_damaged_vocabulary(key: str, value: object) -> None:
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [b"a", b"b"]}
    assert Tokenizer(**read_vocabulary(metadata)).vocab_size == 2
    metadata[f"tokenizer.ggml.{key}"] = value  # type: ignore[assignment]
    with pytest.raises(ModelFileError):
        Tokenizer(**read_vocabulary({k: v for k, v in metadata.items() if v is not None}))


def test_torch_is_not_loaded() -> None:
    code = "import sys, llama_ckpt.tokens.tokenizer, llama_ckpt.tokens.text_stream; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
