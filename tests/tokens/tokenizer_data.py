"""What was recorded from llama.cpp for the tokenizer, as bytes and lists."""

from __future__ import annotations

import bz2
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.tokens.vocabulary import read_vocabulary

__all__ = [
    "FOLDER",
    "SPACE",
    "Recorded",
    "bpe_vocabularies",
    "corpus",
    "is_utf8",
    "vectors",
    "vectors_of",
    "vocabularies",
]

FOLDER = Path(__file__).parents[1] / "data" / "tokenizer"
SPACE = "\u2581"  # how a vocabulary writes a space; in a text it comes back as one


@dataclass(frozen=True)
class Recorded:
    """llama.cpp's tokenizer with one vocabulary.

    Attributes:
        strings: texts, their tokens, and their tokens with special tokens parsed.
        pieces: what `llama_token_to_piece` gives for every id.
        hidden: ids whose piece is empty when special tokens are not asked for.
        ends: ids that end generation.
        metadata: of the vocabulary; empty for the embedded model's.
    """

    strings: list[tuple[bytes, list[int], list[int]]]
    pieces: list[bytes]
    hidden: list[int]
    ends: list[int]
    metadata: dict[str, Any]

    def arguments(self) -> dict[str, Any]:
        """The arguments of a Tokenizer with this vocabulary."""
        return read_vocabulary(self.metadata)

    def differing(self, tokenizer: Tokenizer, **options: bool) -> list[bytes]:
        """The texts that the tokenizer gives other tokens than llama.cpp did."""
        return [
            text
            for text, plain, parsed in self.strings
            if tokenizer.encode(text, **options) != plain
            or tokenizer.encode(text, parse_special=True, **options) != parsed
        ]


def vectors() -> list[tuple[bytes, list[int]]]:
    """llama.cpp's own test vectors for Llama-2's vocabulary: texts and their tokens, without BOS."""
    return vectors_of(FOLDER / "ggml-vocab-llama-spm.gguf")


def vectors_of(vocabulary: Path) -> list[tuple[bytes, list[int]]]:
    """The texts and tokens that lie beside a vocabulary of llama.cpp's, as `.inp` and `.out`."""
    separator = b"\n__ggml_vocab_test__\n"
    texts = (
        vocabulary.with_name(vocabulary.name + ".inp").read_bytes().removesuffix(separator).split(separator)
    )
    lines = vocabulary.with_name(vocabulary.name + ".out").read_text().splitlines()
    return [(text, [int(token) for token in line.split()]) for text, line in zip(texts, lines, strict=True)]


def corpus() -> Recorded:
    """2,000 random strings, with the embedded model's vocabulary; tokens without BOS."""
    return recorded_case(_load("corpus.json.bz2"))


def vocabularies() -> list[Recorded]:
    """80 random vocabularies; tokens with the BOS and EOS that their metadata ask for."""
    return [recorded_case(case) for case in _load("vocabularies.json.bz2")["vocabularies"]]


def bpe_vocabularies() -> list[Recorded]:
    """A random byte-level BPE vocabulary for each pre-tokenizer; tokens as in `vocabularies`."""
    return [recorded_case(case) for case in _load("bpe.json.bz2")["vocabularies"]]


def _load(name: str) -> Any:
    return json.loads(bz2.decompress((FOLDER / name).read_bytes()))


def recorded_case(case: dict[str, Any]) -> Recorded:
    """One case of a file that `tools/capture_tokenizer_corpus.py` writes, bytes as strings of code points."""
    metadata = case.get("metadata", {})
    for key in {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"} & metadata.keys():
        metadata[key] = [text.encode("latin-1") for text in metadata[key]]
    strings = [
        (text.encode("latin-1"), plain, plain if parsed is None else parsed)
        for text, plain, parsed in case["strings"]
    ]
    pieces = [piece.encode("latin-1") for piece in case["pieces"]]
    return Recorded(strings, pieces, case["hidden"], case.get("ends", []), metadata)


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are whole UTF-8, without surrogates."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
