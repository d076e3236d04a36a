"""Byte-level BPE gives llama.cpp's tokens and pieces with every pre-tokenizer; a wrong one is found."""

from __future__ import annotations

import random
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llama_ckpt.errors import ModelFileError, UnsupportedModelError
from llama_ckpt.tokens import bpe, pre_tokenizing, unicode_classes
from llama_ckpt.tokens.pre_tokenizers import PRE_TOKENIZERS
from llama_ckpt.tokens.text_stream import TextStream
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.tokens.vocabulary import read_vocabulary
from tests.tokens.tokenizer_data import Recorded, bpe_vocabularies, is_utf8

BYTES = [bpe.BYTE_CHARACTERS[byte].encode() for byte in range(256)]


@pytest.fixture(scope="module")
def recorded() -> list[Recorded]:
    return bpe_vocabularies()


def differing(recorded: list[Recorded], **wrong: Any) -> int:
    """How many of the recorded texts get other tokens with these arguments in the place of the file's."""
    return sum(len(case.differing(Tokenizer(**{**case.arguments(), **wrong}))) for case in recorded)


def test_what_llama_cpp_recorded(recorded: list[Recorded]) -> None:
    kinds = {case.arguments()["pre_tokenizer"] for case in recorded}
    assert kinds == set(PRE_TOKENIZERS.values()) and sum(len(case.strings) for case in recorded) > 500
    for case in recorded:
        tokenizer = Tokenizer(**case.arguments())
        assert case.differing(tokenizer) == []
        ids = range(tokenizer.vocab_size)
        assert [tokenizer.piece(token) for token in ids] == case.pieces
        assert [i for i in ids if tokenizer.piece(i, special=False) != case.pieces[i]] == case.hidden
        assert tokenizer.eog_ids == set(case.ends)


# Wrong tokenizers, which the recordings have to find


def test_each_kind_of_cut_decides_tokens(recorded: list[Recorded]) -> None:
    for case in recorded:
        uncut = replace(case.arguments()["pre_tokenizer"], stages=())
        assert differing([case], pre_tokenizer=uncut) > 0


def test_ignored_merges_are_found(recorded: list[Recorded]) -> None:
    cases = [case for case in recorded if case.arguments()["pre_tokenizer"].ignore_merges]
    for case in cases:
        followed = replace(case.arguments()["pre_tokenizer"], ignore_merges=False)
        assert differing([case], pre_tokenizer=followed) > 0
    assert len(cases) > 3


def test_a_stage_that_is_left_out_is_found(recorded: list[Recorded]) -> None:
    found = []
    for case in recorded:
        pre = case.arguments()["pre_tokenizer"]
        for left_out in pre.stages if len(pre.stages) > 1 else ():
            stages = tuple(stage for stage in pre.stages if stage != left_out)
            found.append(differing([case], pre_tokenizer=replace(pre, stages=stages)) > 0)
    assert sum(found) > 0.6 * len(found)  # some cut only what another stage cuts as well


def test_merges_upside_down_are_found(recorded: list[Recorded]) -> None:
    found = [differing([case], merges=case.arguments()["merges"][::-1]) > 0 for case in recorded]
    assert sum(found) > 0.8 * len(found)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("llama-bpe", ["Hello", " world", "'s", " ", "123", "45", "  \n\n", " ", " été", "!!\n"]),
        ("llama-bpe", ["It", "'S", "\u3000x", "\t", "\u00a0", "7"]),
        ("smollm", ["It", "'", "S", " ", "1", "2", " x"]),
        ("tekken", ["éAb", "DEFg", " x", "/", "1", "2"]),  # cases beyond ASCII are not told apart
        ("deepseek-llm", ["a", " b", "\n", " c", " ", "中文", "12", "  "]),
        ("deepseek-coder", ["a", "\n", " b", "!", "1", "2", "中"]),
        ("qwen2", ["a", "1", "2", "\r\n\r\n"]),
        ("gpt-2", ["a", " 12", "  ", " b", "\n"]),
        ("tiny_aya", ["ab", "1", "234"]),
    ],
)
def test_words(pre: str, words: list[str]) -> None:
    assert PRE_TOKENIZERS[pre].words("".join(words)) == words


def test_white_space_of_ascii_alone_is_found(
    recorded: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unicode_classes, "_SPACE", unicode_classes._NONE)
    monkeypatch.setattr(pre_tokenizing, "classes", lambda text: text.translate(unicode_classes._Classes()))
    assert differing(recorded) > 0


def test_broken_utf8_left_out_is_found(recorded: list[Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(not is_utf8(text) for case in recorded for text, *_ in case.strings)
    monkeypatch.setattr(bpe, "lenient_utf8", lambda data: data.decode(errors="ignore"))
    assert differing(recorded) > 0


# What a file says


def minimal(**more: Any) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*BYTES, b"ab", b"<|x|>"],
        "tokenizer.ggml.merges": [b"a b"],
        "tokenizer.ggml.token_type": [1] * 257 + [3],
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


@pytest.mark.parametrize(
    ("pre", "add_bos", "bos"),
    [
        (None, False, 11),
        ("gpt-2", False, 11),
        ("llama-bpe", True, 11),
        ("tekken", True, 11),
        ("glm4", False, None),
    ],
)
def test_defaults_follow_from_the_pre_tokenizer(pre: str | None, add_bos: bool, bos: int | None) -> None:
    tokenizer = Tokenizer(**read_vocabulary(minimal(**({} if pre is None else {"pre": pre}))))
    assert (tokenizer.add_bos, tokenizer.bos_id, tokenizer.eos_id) == (add_bos, bos, 11)
    assert tokenizer.encode("ab")[-1] == 256 and not tokenizer.add_space_prefix


def test_special_tokens_are_text_unless_asked_for() -> None:
    tokenizer = Tokenizer(**read_vocabulary(minimal()))
    assert tokenizer.encode("ab<|x|>ab", parse_special=True) == [256, 257, 256]
    plain = tokenizer.encode("ab<|x|>ab")
    assert 257 not in plain and tokenizer.decode(plain) == "ab<|x|>ab"
    assert tokenizer.decode([256, 257], skip_special=True) == "ab"


def test_a_text_comes_back_whole_and_in_pieces() -> None:
    tokenizer = Tokenizer(**read_vocabulary(minimal(pre="llama-bpe")))
    text = "Hallo, Wörld! 你好 🦙 \n\t x"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = TextStream()
    shown = [stream.push(tokenizer.piece(token)) for token in ids[1:]]
    assert "".join(shown) + stream.finish() == text and "" in shown


def test_what_no_token_can_be_made_of_is_left_out() -> None:
    metadata = minimal()
    metadata["tokenizer.ggml.tokens"][BYTES.index("Ġ".encode())] = b"gone"
    assert Tokenizer(**read_vocabulary(metadata)).encode("a a") == [97, 97]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\xffb", "a\ufffdb"),
        (b"\xe2\x96", "\ufffd\ufffd"),
        (b"\xed\xa0\x80", "\ud800"),
        (b"\xc1\x81", "A"),
        (b"\xf4\x90\x80\x80x", "\ufffdx"),
        (b"\xf0\x9f\xa6\x99\x80", "🦙\ufffd"),
    ],
)
def test_bytes_that_are_no_utf8(data: bytes, text: str) -> None:
    assert bpe.lenient_utf8(data) == text


def test_a_character_that_stands_for_no_byte_is_shown() -> None:
    assert bpe.bytes_of_characters("a中".encode()) == b"a[UNK_BYTE_0xe4b8ad" + "a中]".encode()


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("pre", "no such one", UnsupportedModelError),
        ("pre", np.array([1, 2]), ModelFileError),
        ("merges", np.array([1, 2]), ModelFileError),
        ("merges", None, ModelFileError),
        ("tokens", [], ModelFileError),
    ],
)
def test_what_is_refused(key: str, value: Any, error: type[Exception]) -> None:
    metadata = {k: v for k, v in minimal(**{key: value}).items() if v is not None}
    with pytest.raises(error, match=f"tokenizer.ggml.{key}"):
        read_vocabulary(metadata)


# Classes of characters and speed


def test_the_table_of_classes_is_that_of_unicode() -> None:
    """Beside Python's own, of whatever version: what both know is the same."""
    for code in (*range(0x80, 0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200)):
        category = unicodedata.category(chr(code))[0]
        kind = unicode_classes._class_of(code)
        if kind == "W":
            assert chr(code).isspace()
        elif category != "C" and kind != "-":  # assigned in both versions
            assert kind == category


N = 30_000
LONG_TEXTS: dict[str, Callable[[random.Random], str]] = {
    "identical letters": lambda rng: "a" * N,
    "spaces": lambda rng: " " * N,
    "letters of both cases": lambda rng: "aB" * N,
    "numbers": lambda rng: "1" * N,
    "any characters": lambda rng: "".join(chr(rng.randrange(0xD800)) for _ in range(N)),
    "accents": lambda rng: "a\u0301" * N,
}


@pytest.mark.parametrize("kind", LONG_TEXTS)
@pytest.mark.parametrize("pre", ["llama-bpe", "tekken", "deepseek-llm"])
def test_30_000_characters_in_under_two_seconds(pre: str, kind: str) -> None:
    merges = [b"a a", b"aa aa", "\u0120 \u0120".encode(), b"1 1"]
    tokens = [*BYTES, *(merge.replace(b" ", b"") for merge in merges)]
    tokenizer = Tokenizer(tokens, merges=merges, pre_tokenizer=PRE_TOKENIZERS[pre], add_bos=False)
    text = LONG_TEXTS[kind](random.Random(0))[:N]
    began = time.process_time()
    ids = tokenizer.encode(text)
    assert time.process_time() - began < 2.0
    assert tokenizer.decode(ids) == text
