"""The merging of one text fragment into tokens, as llama.cpp's SPM tokenizer does it.

A text is cut into symbols, one UTF-8 character each. While any two neighbours together are a token,
the pair whose token has the highest score is merged; of equal scores, the left-most. Symbols that are
no token when all is merged become one byte token for each of their bytes.

Two things make it fast and change no token. A merge never reaches across two neighbouring symbols that
are neighbours in no token of the vocabulary: the text falls into chunks there, in practice into words.
And a short chunk's tokens, which depend on nothing but the chunk, are remembered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np

from llama_ckpt.errors import ModelFileError, TokenizerError
from llama_ckpt.tokens.merging import merge_symbols

__all__ = ["SPACE", "SpmMerger"]

SPACE = "\u2581".encode()
"""How a SentencePiece vocabulary writes a space."""

# A symbol's length comes from the high half of its first byte alone, whatever follows, and ends with the
# text: that is llama.cpp's reading of broken UTF-8, and for sound UTF-8 it is one character.
_SYMBOL = re.compile(rb"(?s:[\x00-\xbf]|[\xc0-\xdf].?|[\xe0-\xef].{0,2}|[\xf0-\xff].{0,3})")

_REMEMBERED_CHUNKS = 1 << 15
_LONGEST_REMEMBERED = 48  # bytes; with the number of chunks this bounds the memory to a few megabytes


class SpmMerger:
    """Merges text fragments with one vocabulary; safe to share between threads.

    Args:
        ids: token texts (UTF-8, spaces as U+2581) to token ids.
        scores: one float32 score for each token, in the order of `ids`; higher merges first.

    Raises:
        ModelFileError: a score is NaN, which puts the pairs into no order.
    """

    def __init__(self, ids: Mapping[bytes, int], scores: Sequence[float] | np.ndarray) -> None:
        negated = -np.asarray(scores, dtype=np.float32)
        if np.isnan(negated).any():
            raise ModelFileError("a score in tokenizer.ggml.scores is not a number", got="NaN")
        # Equal scores share a rank: only then does the position decide.
        ranks = np.unique(negated, return_inverse=True)[1].tolist()
        self._ids = ids
        self._ranks: dict[bytes, int] = dict(zip(ids, ranks, strict=True))
        self._byte_ids = [_byte_token(ids, byte) for byte in range(256)]
        self._remembered = lru_cache(_REMEMBERED_CHUNKS)(self._chunk_ids)

    @cached_property
    def _neighbours(self) -> frozenset[tuple[bytes, bytes]]:
        """Every two symbols that some token has side by side; whoever encodes nothing need not wait."""
        return frozenset(pair for text in self._ids for pair in pairwise(_SYMBOL.findall(text)))

    def ids(self, text: bytes) -> list[int]:
        """The token ids of a fragment whose spaces are already U+2581.

        Raises:
            TokenizerError: the text needs a byte token that the vocabulary does not have.
        """
        ids: list[int] = []
        for chunk in self._chunks(text):
            ids += self._remembered(chunk) if len(chunk) <= _LONGEST_REMEMBERED else self._chunk_ids(chunk)
        return ids

    def _chunks(self, text: bytes) -> Iterator[bytes]:
        """The text, cut wherever no token has these two symbols side by side."""
        symbols = _SYMBOL.findall(text)
        start, neighbours = 0, self._neighbours
        for cut in [i for i, pair in enumerate(pairwise(symbols), 1) if pair not in neighbours]:
            yield b"".join(symbols[start:cut])
            start = cut
        if symbols:
            yield b"".join(symbols[start:])

    def _chunk_ids(self, chunk: bytes) -> tuple[int, ...]:
        ids: list[int] = []
        for text in merge_symbols(_SYMBOL.findall(chunk), self._ranks):
            token = self._ids.get(text)
            if token is None:
                ids += self._fallback(text)
            else:
                ids.append(token)
        return tuple(ids)

    def _fallback(self, text: bytes) -> Iterator[int]:
        for byte in text:
            token = self._byte_ids[byte]
            if token is None:
                raise TokenizerError(
                    "the vocabulary cannot hold this text: it has neither the character nor its bytes",
                    got=f"byte 0x{byte:02X} of {text!r}",
                    wanted=f"a token <0x{byte:02X}>",
                )
            yield token


def _byte_token(ids: Mapping[bytes, int], byte: int) -> int | None:
    token = ids.get(b"<0x%02X>" % byte)
    return ids.get(bytes([byte])) if token is None else token
