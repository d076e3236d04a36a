"""Decoding is encoding's inverse, for any text and any bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.tokens.text_stream import TextStream
from llama_ckpt.tokens.tokenizer import Tokenizer
from tests.tokens.tokenizer_data import SPACE, Recorded, corpus, is_utf8


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Path) -> Tokenizer:
    return Tokenizer.from_gguf(open_gguf(embedded_model))


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return corpus()


PARTS = st.sampled_from(["<s>", "</s>", "<unk>", "<0x41>", " ", "  ", "\n", "\0", "\ud83d", "\udc80", "🦙"])
TEXTS = st.lists(st.text(st.characters()) | PARTS, max_size=8).map("".join).filter(lambda t: SPACE not in t)


@given(text=TEXTS, parse_special=st.booleans())
def test_decode_gives_the_text_back(tokenizer: Tokenizer, text: str, parse_special: bool) -> None:
    bos, *ids = tokenizer.encode(text, parse_special=parse_special)
    assert tokenizer.decode([bos, *ids], parse_special=parse_special) == text
    if ids[:1] != [bos]:  # without an added BOS, the text's own would be taken for it
        assert tokenizer.decode(ids, parse_special=parse_special) == text


@given(text=st.lists(st.binary() | PARTS.map(lambda t: t.encode("utf-8", "surrogatepass")), max_size=8))
def test_decode_bytes_gives_any_bytes_back(tokenizer: Tokenizer, text: list[bytes]) -> None:
    data = b"".join(text).replace(SPACE.encode(), b"")
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data
    if is_utf8(data):
        assert tokenizer.decode(tokenizer.encode(data)) == data.decode()


def test_the_corpus_comes_back(tokenizer: Tokenizer, recorded: Recorded) -> None:
    for text, plain, parsed in recorded.strings:
        text = text.replace(SPACE.encode(), b" ")  # the two have the same tokens
        assert tokenizer.decode_bytes([1, *plain]) == text
        assert tokenizer.decode_bytes([1, *parsed], parse_special=True) == text


def test_streamed_pieces_are_the_text(tokenizer: Tokenizer, recorded: Recorded) -> None:
    for text, plain, _ in recorded.strings:
        stream = TextStream()
        shown = "".join([stream.push(tokenizer.piece(token)) for token in plain]) + stream.finish()
        if is_utf8(text):
            assert shown == " " + text.decode().replace(SPACE, " ")


def test_decode_leaves_special_tokens_out_when_asked(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a</s>b<s>", parse_special=True)
    assert tokenizer.decode(ids, parse_special=True) == "a</s>b<s>"
    assert tokenizer.decode(ids, parse_special=True, skip_special=True) == "ab"
    assert tokenizer.decode(ids, skip_special=True) == "a b"  # as text, the second space was the text's


def test_decode_of_broken_bytes_is_shown(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(b"a\xff b\xe2\x96")) == "a\ufffd b\ufffd"
    assert tokenizer.decode(np.array([15043, 3186])) == "Hello world"
