"""The tokenizer gives llama.cpp's tokens and pieces, fast; a wrong tokenizer is found."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.tokens import special_tokens, spm
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.tokens.vocabulary import read_vocabulary
from tests.tokens.tokenizer_data import SPACE, Recorded, corpus, is_utf8, vectors, vocabularies


@pytest.fixture(scope="module")
def arguments(embedded_model: Path) -> dict[str, Any]:
    return read_vocabulary(open_gguf(embedded_model).metadata)


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Path) -> Tokenizer:
    return Tokenizer.from_gguf(open_gguf(embedded_model))


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return corpus()


@pytest.fixture(scope="module")
def recorded_vocabularies() -> list[Recorded]:
    return vocabularies()


# Against llama.cpp


def test_llama_cpps_own_vectors(tokenizer: Tokenizer) -> None:
    cases = vectors()
    assert len(cases) == 46
    for text, tokens in cases:
        assert tokenizer.encode(text, add_bos=False) == tokens
        assert tokenizer.encode(text.decode()) == [1, *tokens]


def test_corpus(tokenizer: Tokenizer, recorded: Recorded) -> None:
    assert len(recorded.strings) == 2000
    assert sum(plain != parsed for _, plain, parsed in recorded.strings) > 150
    assert recorded.differing(tokenizer, add_bos=False) == []


def test_pieces_of_all_tokens(tokenizer: Tokenizer, recorded: Recorded) -> None:
    assert tokenizer.vocab_size == len(recorded.pieces) == 32_000
    assert [tokenizer.piece(token) for token in range(32_000)] == recorded.pieces
    hidden = [token for token in range(32_000) if not tokenizer.piece(token, special=False)]
    assert hidden == recorded.hidden == [0, 1, 2]


def test_random_vocabularies(recorded_vocabularies: list[Recorded]) -> None:
    assert len(recorded_vocabularies) == 80
    for case in recorded_vocabularies:
        tokenizer = Tokenizer(**case.arguments())
        assert case.differing(tokenizer) == []
        ids = range(tokenizer.vocab_size)
        assert [tokenizer.piece(token) for token in ids] == case.pieces
        shown = [b"" if token in case.hidden else piece for token, piece in enumerate(case.pieces)]
        assert [tokenizer.piece(token, special=False) for token in ids] == shown
        assert tokenizer.eog_ids == set(case.ends)


def test_what_the_file_says(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.eog_ids) == (1, 2, 0, {2})
    assert tokenizer.encode("Hello") == [1, 15043]
    assert tokenizer.encode("Hello", add_bos=False) == [15043]
    assert tokenizer.encode("Hello", add_eos=True) == [1, 15043, 2]
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("", add_bos=False) == []


def test_a_bos_in_the_text_is_doubled(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<s>Hello", parse_special=True) == [1, 1, 15043]
    assert tokenizer.encode("<s>Hello")[:2] == [1, 529]  # " <"


# Wrong tokenizers, which the corpus has to find


def right_most(texts: list[bytes], ranks: dict[bytes, int], joint: bytes = b"") -> list[bytes]:
    """The merging done naively, with the right-most of equal pairs first."""
    while True:
        found = [(ranks.get(a + joint + b, 1 << 30), -i) for i, (a, b) in enumerate(pairwise(texts))]
        if min(found, default=(1 << 30, 0))[0] == 1 << 30:
            return texts
        at = -min(found)[1]
        texts = [*texts[:at], texts[at] + texts[at + 1], *texts[at + 2 :]]


def left_to_right(texts: list[bytes], ranks: dict[bytes, int], joint: bytes = b"") -> list[bytes]:
    """The longest token from the left, as in WordPiece; SPM's ranks are by what a pair becomes."""
    text, result = b"".join(texts), []
    while text:
        size = next((n for n in range(min(48, len(text)), 0, -1) if text[:n] in ranks), 1)
        result, text = [*result, text[:size]], text[size:]
    return result


WRONG_VOCABULARIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no space in front": lambda a: {"add_space_prefix": False},
    "scores upside down": lambda a: {"scores": -np.asarray(a["scores"])},
    "all scores equal": lambda a: {"scores": None},
    "no special tokens": lambda a: {"types": None},
}


@pytest.mark.parametrize("name", WRONG_VOCABULARIES)
def test_a_wrong_vocabulary_is_found(arguments: dict[str, Any], recorded: Recorded, name: str) -> None:
    wrong = Tokenizer(**{**arguments, **WRONG_VOCABULARIES[name](arguments)})
    assert recorded.differing(wrong, add_bos=False)


@pytest.mark.parametrize("merge", [right_most, left_to_right])
def test_a_wrong_merge_is_found(
    arguments: dict[str, Any], recorded: Recorded, monkeypatch: pytest.MonkeyPatch, merge: Callable[..., Any]
) -> None:
    monkeypatch.setattr(spm, "merge_symbols", merge)
    assert recorded.differing(Tokenizer(**arguments), add_bos=False)


def test_broken_utf8_read_byte_by_byte_is_found(
    arguments: dict[str, Any], recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
    monkeypatch.setattr(spm, "_SYMBOL", re.compile(rb"(?s:" + sound + rb"|.)"))
    differing = recorded.differing(Tokenizer(**arguments), add_bos=False)
    assert differing and not any(is_utf8(text) for text in differing)


@pytest.mark.parametrize("name", ["_NAMES_OF_ROLE", "_END_NAMES", "_ALWAYS_SHOWN"])
def test_types_taken_as_they_are_is_found(
    recorded_vocabularies: list[Recorded], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(special_tokens, name, {} if name == "_NAMES_OF_ROLE" else ())
    assert any(case.differing(Tokenizer(**case.arguments())) for case in recorded_vocabularies)


@pytest.mark.parametrize("wrong", [{"strip_after_special": False}, {"roles": {}}, {"add_eos": False}])
def test_a_forgotten_property_is_found(recorded_vocabularies: list[Recorded], wrong: dict[str, Any]) -> None:
    cases = [(case, Tokenizer(**{**case.arguments(), **wrong})) for case in recorded_vocabularies]
    assert any(case.differing(tokenizer) for case, tokenizer in cases)


# Speed


N = 100_000
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONG_TEXTS: dict[str, Callable[[random.Random], str]] = {
    "words": lambda rng: " ".join("".join(rng.choices(LETTERS, k=rng.randint(1, 12))) for _ in range(N)),
    "identical letters": lambda rng: "a" * N,
    "spaces": lambda rng: " " * N,
    "newlines": lambda rng: "\n" * N,
    "a rule": lambda rng: "=" * N,
    "no white space": lambda rng: "".join(rng.choices(LETTERS, k=N)),
    "two letters in turn": lambda rng: "ab" * N,
    "any characters": lambda rng: "".join(chr(rng.randrange(0xD800)) for _ in range(N)),
    "astral characters": lambda rng: "".join(chr(rng.randrange(0x10000, 0x110000)) for _ in range(N)),
    "special tokens": lambda rng: "</s>" * N,
}


@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_100_000_characters_in_well_under_a_second(tokenizer: Tokenizer, kind: str) -> None:
    text = LONG_TEXTS[kind](random.Random(0))[:N].replace(SPACE, "x")
    assert len(text) == N
    began = time.process_time()  # the processor's time: a busy machine must not fail this
    ids = tokenizer.encode(text, parse_special=True)
    assert time.process_time() - began < 1.0
    assert tokenizer.decode(ids, parse_special=True) == text
