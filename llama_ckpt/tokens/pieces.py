"""What a token is as bytes, and tokens in a row: as `llama_token_to_piece` gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import groupby

from llama_ckpt.tokens.bpe import bytes_of_characters
from llama_ckpt.tokens.special_tokens import Kind, byte_value
from llama_ckpt.tokens.spm import SPACE

__all__ = ["bpe_piece", "joined_spm", "spm_piece"]

_AS_WRITTEN = Kind.UNKNOWN | Kind.CONTROL | Kind.USER_DEFINED


def spm_piece(text: bytes, kind: int) -> bytes:
    """A SentencePiece token's bytes, of its text and its `Kind`."""
    if kind & _AS_WRITTEN:
        return text
    if kind & Kind.NORMAL:
        return text.replace(SPACE, b" ")
    return bytes([byte_value(text)]) if kind & Kind.BYTE else b""


def bpe_piece(text: bytes, kind: int) -> bytes:
    """A byte-level BPE token's bytes, of its text and its `Kind`."""
    if kind & _AS_WRITTEN:
        return text
    if kind & Kind.NORMAL:
        return bytes_of_characters(text)
    return bytes([byte_value(text)]) if kind & Kind.BYTE else b""


def joined_spm(
    tokens: Iterable[int], pieces: Sequence[bytes], byte_ids: Set[int], *, has_space: bool
) -> Iterator[bytes]:
    """The pieces of SentencePiece tokens, runs of byte tokens in one.

    After a broken character's first byte, a space's U+2581 is itself broken up, and stands in the ids as
    three byte tokens; so it does everywhere where the vocabulary has no U+2581 (`has_space` False).
    """
    for is_bytes, run in groupby(tokens, byte_ids.__contains__):
        part = b"".join([pieces[token] for token in run])
        if is_bytes and SPACE in part and not (has_space and _is_utf8(part)):
            part = part.replace(SPACE, b" ")
        yield part


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
