"""Byte-level BPE: a text fragment cut into words, each word's bytes merged by the file's list of merges.

A word's bytes are written as one character each, since a vocabulary is text: printable Latin-1 characters for
themselves, the others as U+0100 and up. The merges are tried in their order; what is no token in the end
becomes the tokens of its characters' bytes, where there are such. Words repeat, so their tokens are kept.

No library gives the same tokens always: `tokenizers` takes no text that is not UTF-8, has another version of
Unicode, tells cases apart where llama.cpp does not, and knows nothing of tokens that the merges do not reach.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from llama_ckpt.tokens.merging import merge_symbols
from llama_ckpt.tokens.pre_tokenizing import PreTokenizer

__all__ = ["BYTE_CHARACTERS", "BpeMerger", "bytes_of_characters", "lenient_utf8"]

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_REST = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_CHARACTERS = {
    **{byte: chr(byte) for byte in _PRINTABLE},
    **{byte: chr(256 + number) for number, byte in enumerate(_REST)},
}
"""The character that a vocabulary writes for each byte."""

_BYTE_OF = {character: byte for byte, character in BYTE_CHARACTERS.items()}
_LATIN = "".join(BYTE_CHARACTERS[byte] for byte in range(256))
_SYMBOL = re.compile(rb"(?s:[\x00-\xbf]|[\xc0-\xdf].?|[\xe0-\xef].{0,2}|[\xf0-\xff].{0,3})")
_CODE = re.compile(
    rb"(?s:[\x00-\x7f]+|[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf7][\x80-\xbf]{3}|.)"
)

_REMEMBERED_WORDS = 1 << 15
_LONGEST_REMEMBERED = 48  # characters; with the number of words this bounds the memory to a few megabytes


class BpeMerger:
    """Merges text fragments with one vocabulary; safe to share between threads.

    Args:
        ids: token texts, as the file writes them, to token ids.
        merges: pairs with a space between them, the best first.
        pre_tokenizer: what cuts a text into words.
    """

    def __init__(
        self, ids: Mapping[bytes, int], merges: Sequence[bytes], pre_tokenizer: PreTokenizer
    ) -> None:
        self._ids, self._pre_tokenizer = ids, pre_tokenizer
        last = len(merges) - 1
        # Of two equal merges the first holds. What has no space in it, or several, is never met.
        self._ranks = {pair: last - number for number, pair in enumerate(reversed(merges))}
        self._remembered = lru_cache(_REMEMBERED_WORDS)(self._word_ids)

    def ids(self, text: bytes) -> list[int]:
        """The token ids of a fragment; what no token can be made of is left out, as llama.cpp does."""
        ids: list[int] = []
        for word in self._pre_tokenizer.words(lenient_utf8(text)):
            ids += self._remembered(word) if len(word) <= _LONGEST_REMEMBERED else self._word_ids(word)
        return ids

    def _word_ids(self, word: str) -> tuple[int, ...]:
        written = word.encode("utf-8", "surrogatepass").decode("latin-1").translate(_LATIN).encode()
        if self._pre_tokenizer.ignore_merges and written in self._ids:
            return (self._ids[written],)
        ids: list[int] = []
        for text in merge_symbols(_SYMBOL.findall(written), self._ranks, b" "):
            token = self._ids.get(text)
            if token is not None:
                ids.append(token)
            else:
                ids += [self._ids[byte] for byte in map(_one_byte, text) if byte in self._ids]
        return tuple(ids)


def _one_byte(byte: int) -> bytes:
    return bytes((byte,))


def lenient_utf8(data: bytes) -> str:
    """Bytes as characters, as llama.cpp reads them: what begins no character is U+FFFD, byte by byte.

    Lone surrogates and characters that are written too long are let through as what they say; a character
    beyond Unicode, at which llama.cpp ends its process, is U+FFFD.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(map(_character, _CODE.findall(data)))


def _character(code: bytes) -> str:
    first, *rest = code
    if first < 0x80:
        return code.decode()
    if not rest:
        return "\ufffd"
    value = first & (0x7F >> (len(rest) + 1))
    for byte in rest:
        value = value << 6 | byte & 0x3F
    return chr(value) if value <= 0x10FFFF else "\ufffd"


def bytes_of_characters(text: bytes) -> bytes:
    """The bytes that a token stands for; a character that stands for none is written as llama.cpp does."""
    out = bytearray()
    for character in lenient_utf8(text):
        byte = _BYTE_OF.get(character)
        if byte is not None:
            out.append(byte)
        else:
            out += b"[UNK_BYTE_0x" + character.encode("utf-8", "surrogatepass").hex().encode() + text + b"]"
    return bytes(out)
