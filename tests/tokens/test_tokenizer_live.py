"""The tokenizer beside the real llama.cpp, on texts and vocabularies that are new in every run."""

from __future__ import annotations

import bz2
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.tokens.pre_tokenizers import PRE_TOKENIZERS
from llama_ckpt.tokens.tokenizer import Tokenizer
from tests.tokens.tokenizer_data import FOLDER, recorded_case

if TYPE_CHECKING:
    from tools.capture_tokenizer_corpus import LlamaCppVocabulary

pytestmark = pytest.mark.llama_cpp

PARTS = st.sampled_from([*map(str.encode, ("<s>", "</s>", "<unk>", " ", "  ", "\n", "\u2581")), b"\xe2\x96"])
TEXTS = st.lists(st.text().map(str.encode) | st.binary(max_size=6) | PARTS, max_size=10).map(b"".join)


@pytest.fixture(scope="module")
def llama_cpp_vocabulary(embedded_model: Path) -> Iterator[LlamaCppVocabulary]:
    from tools.capture_tokenizer_corpus import LlamaCppVocabulary

    vocabulary = LlamaCppVocabulary(embedded_model)
    yield vocabulary
    vocabulary.close()


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Path) -> Tokenizer:
    return Tokenizer.from_gguf(open_gguf(embedded_model))


@settings(max_examples=1000)
@given(text=TEXTS, parse_special=st.booleans())
def test_any_text(
    tokenizer: Tokenizer, llama_cpp_vocabulary: LlamaCppVocabulary, text: bytes, parse_special: bool
) -> None:
    wanted = llama_cpp_vocabulary.tokenize(text, add_special=True, parse_special=parse_special)
    assert tokenizer.encode(text, parse_special=parse_special) == wanted


@pytest.mark.parametrize("unit", ["a", " ", "=", "ab", "the ", "\n", "é"])
def test_long_runs(tokenizer: Tokenizer, llama_cpp_vocabulary: LlamaCppVocabulary, unit: str) -> None:
    text = unit.encode() * 5000 + b"a"
    wanted = llama_cpp_vocabulary.tokenize(text, add_special=True, parse_special=False)
    assert tokenizer.encode(text) == wanted


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_any_vocabulary(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    from tools.capture_tokenizer_corpus import LlamaCppVocabulary
    from tools.random_vocabulary import random_text, random_vocabulary, write_vocabulary

    rng = random.Random(seed)
    metadata = random_vocabulary(rng)
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf"
    write_vocabulary(path, metadata)
    vocabulary, tokenizer = LlamaCppVocabulary(path), Tokenizer.from_gguf(open_gguf(path))
    for _ in range(20):
        text = random_text(rng, metadata)
        for parse in (False, True):
            wanted = vocabulary.tokenize(text, add_special=True, parse_special=parse)
            assert tokenizer.encode(text, parse_special=parse) == wanted
    for token in range(vocabulary.size):
        assert tokenizer.piece(token, special=False) == vocabulary.piece(token, special=False)
        assert (token in tokenizer.eog_ids) == vocabulary.ends(token)
    vocabulary.close()


def test_the_recordings_are_what_llama_cpp_says(embedded_model: Path) -> None:
    from tools.capture_tokenizer_corpus import capture, capture_bpe, capture_vocabularies

    recordings = {
        "corpus": capture(embedded_model),
        "vocabularies": capture_vocabularies(),
        "bpe": capture_bpe(),
    }
    for name, said in recordings.items():
        assert json.loads(bz2.decompress((FOLDER / f"{name}.json.bz2").read_bytes())) == said


@pytest.mark.parametrize("pre", [None, *PRE_TOKENIZERS])
def test_any_bpe_vocabulary(tmp_path: Path, pre: str | None) -> None:
    from tools.capture_tokenizer_corpus import bpe_case

    case = recorded_case(bpe_case(random.Random(), tmp_path, pre))
    tokenizer = Tokenizer(**case.arguments())
    assert case.differing(tokenizer) == []
    assert [tokenizer.piece(token) for token in range(tokenizer.vocab_size)] == case.pieces
    assert tokenizer.eog_ids == set(case.ends)
