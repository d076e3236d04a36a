"""Vocabularies of any content in bounded time: 200,000 tokens that a text is cut at, tokens of megabytes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence

import pytest

from llama_ckpt.errors import ModelFileError
from llama_ckpt.tokens.special_tokens import partition
from llama_ckpt.tokens.vocabulary import read_vocabulary
from tests.draws import draws

Specials = Sequence[tuple[int, bytes]]


def cut_one_by_one(text: bytes, specials: Specials, strip_after: frozenset[int]) -> list[bytes | int]:
    """Each token in turn, in each fragment: what llama.cpp does, and slow."""
    fragments: list[bytes | int] = [text] if text else []
    for token, name in specials:
        fragments = [part for one in fragments for part in cut(one, token, name, token in strip_after)]
    return fragments


def cut(fragment: bytes | int, token: int, name: bytes, strip: bool) -> Iterator[bytes | int]:
    if isinstance(fragment, int):
        yield fragment
        return
    start = 0
    while (at := fragment.find(name, start)) >= 0:
        if at > start:
            yield fragment[start:at]
        yield token
        start = at + len(name)
        while strip and fragment[start : start + 1] in (b" ", b"\t", b"\n"):
            start += 1
    if start < len(fragment):
        yield fragment[start:]


def test_a_text_is_cut_as_one_by_one() -> None:
    rng = random.Random(1)
    for draw in range(draws(1_500, 15_000)):
        letters = b"ab <" + (b"\0" if draw % 5 == 0 else b"")
        text = bytes(rng.choice(b"ab \0<") for _ in range(rng.randrange(30)))
        names = {
            bytes(rng.choice(letters) for _ in range(rng.randrange(1, 5))) for _ in range(rng.choice((3, 90)))
        }
        specials = sorted(enumerate(sorted(names)), key=lambda one: -len(one[1]))
        strip = frozenset(i for i, _ in specials if rng.random() < 0.3)
        assert partition(text, specials, strip) == cut_one_by_one(text, specials, strip)


def test_200_000_tokens_to_cut_at() -> None:
    rng = random.Random(2)
    text = bytes(rng.choice(b"abcdefgh") for _ in range(32_000))
    absent = [(i, b"%c%c%d" % (97 + i % 8, 97 + i // 8 % 8, i)) for i in range(200_000)]
    pieces = {text[i : i + n] for i in range(32_000) for n in range(2, 9)}
    present = list(enumerate(sorted(pieces, key=lambda piece: -len(piece))[:200_000]))
    began = time.process_time()
    assert partition(text, absent, frozenset()) == [text]
    parts = partition(text, present, frozenset())
    assert b"".join(present[one][1] if isinstance(one, int) else one for one in parts) == text
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            [b"<unk>", b"a" * 70_000],
            "the longest of tokenizer.ggml.tokens: got 70000 bytes, wanted 65536 at most",
        ),
        ([b"%05d" % i * 13_000 for i in range(300)], "all together: got 19500000 bytes"),
    ],
)
def test_texts_of_megabytes_are_refused(tokens: list[bytes], message: str) -> None:
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens}
    with pytest.raises(ModelFileError, match=message):
        read_vocabulary(metadata)
