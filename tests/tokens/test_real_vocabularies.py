"""Real vocabularies beside llama.cpp: its own test vectors, and 2,000 random strings each."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.tokens.tokenizer import Tokenizer
from tests.tokens.tokenizer_data import vectors_of
from tools.fetch_vocabularies import FOLDER

NAMES = (
    *(
        "llama-spm",
        "llama-bpe",
        "deepseek-coder",
        "deepseek-llm",
        "gpt-2",
        "qwen2",
        "qwen35",
        "falcon",
        "mpt",
    ),
    *("phi-3", "command-r", "refact", "starcoder", "aquila", "baichuan", "gpt-neox"),
)
WITHOUT_VECTORS = ("mpt", "aquila", "baichuan", "gpt-neox")


def vocabulary(name: str) -> Path:
    """A vocabulary that was fetched, or the test is skipped."""
    path = Path(os.environ.get("LLAMA_CKPT_VOCABULARIES", FOLDER)) / name
    if not path.exists():
        pytest.skip(f"{name} is not fetched: make vocabularies (90 MB)")
    return path


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_VECTORS])
def test_llama_cpps_own_vectors(name: str) -> None:
    path = vocabulary(f"ggml-vocab-{name}.gguf")
    tokenizer, cases = Tokenizer.from_gguf(open_gguf(path)), vectors_of(path)
    assert len(cases) > 40
    assert [text for text, ids in cases if tokenizer.encode(text, add_bos=False) != ids] == []


@pytest.mark.llama_cpp
@pytest.mark.parametrize("name", [*(f"ggml-vocab-{name}.gguf" for name in NAMES), "tekken.gguf"])
def test_random_strings(name: str) -> None:
    from tools.capture_tokenizer_corpus import LlamaCppVocabulary, is_readable, random_strings
    from tools.random_bpe_vocabulary import mixture

    path, rng = vocabulary(name), random.Random()
    tokenizer, wanted = Tokenizer.from_gguf(open_gguf(path)), LlamaCppVocabulary(path)
    pieces = [wanted.piece(token, special=True) for token in range(wanted.size)]
    assert [tokenizer.piece(token) for token in range(tokenizer.vocab_size)] == pieces
    assert tokenizer.eog_ids == {token for token in range(wanted.size) if wanted.ends(token)}
    texts = [*filter(is_readable, random_strings(rng, 1500, pieces)), *(mixture(rng) for _ in range(500))]
    for parse in (False, True):
        said = {text: wanted.tokenize(text, add_special=True, parse_special=parse) for text in texts}
        assert [t for t in texts if tokenizer.encode(t, parse_special=parse) != said[t]] == []
    wanted.close()
