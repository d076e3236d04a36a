"""Text to token ids and back, exactly as llama.cpp does it with the vocabulary in the GGUF file.

A text becomes bytes; special tokens are cut out of it; each fragment between them is merged, by `spm` with a
space in front, or by `bpe`. Both are written here because no library gives the same tokens always: of the
2,000 strings in tests/data/tokenizer, sentencepiece 0.2.3, given this vocabulary, differs on each of the
565 that are not UTF-8 (it reads U+FFFD), and tokenizers 0.23.3 cannot take those at all.

Source: llama.cpp's behaviour at the version that `reference_dumps` names, checked by tests token for token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import index
from typing import TYPE_CHECKING

import numpy as np

from llama_ckpt.errors import ModelFileError, TokenizerError, UnsupportedModelError
from llama_ckpt.tokens.bpe import BpeMerger
from llama_ckpt.tokens.pieces import bpe_piece, joined_spm, spm_piece
from llama_ckpt.tokens.pre_tokenizing import PreTokenizer
from llama_ckpt.tokens.special_tokens import Kind, partition, token_kinds
from llama_ckpt.tokens.spm import SPACE, SpmMerger
from llama_ckpt.tokens.vocabulary import read_special_ids, read_vocabulary

if TYPE_CHECKING:
    from llama_ckpt.gguf.file import GGUFFile

__all__ = ["Tokenizer"]


class Tokenizer:
    """llama.cpp's tokenizer with one vocabulary, SPM or BPE; safe to share between threads.

    Attributes:
        bos_id, eos_id, unk_id: the ids of the special tokens, None where the vocabulary has none.
        eog_ids: every id at which llama.cpp ends generation; `eos_id` is one of them.
        add_bos, add_eos: what `encode` adds unless it is told otherwise.
        add_space_prefix: whether a space is put before a text.
        unsupported: why texts cannot be encoded with this vocabulary, a sentence; None where they can. Ids
            are all that such a tokenizer knows: a token's piece is then its id in brackets.
    """

    unsupported: str | None = None

    def __init__(
        self,
        tokens: Sequence[bytes],
        scores: Sequence[float] | np.ndarray | None = None,
        types: Sequence[int] | np.ndarray | None = None,
        *,
        bos_id: int | None = 1,
        eos_id: int | None = 2,
        unk_id: int | None = 0,
        add_bos: bool = True,
        add_eos: bool = False,
        add_space_prefix: bool = True,
        roles: Mapping[str, int] | None = None,
        strip_after_special: bool = False,
        merges: Sequence[bytes] | None = None,
        pre_tokenizer: PreTokenizer | None = None,
    ) -> None:
        """Make a tokenizer from its parts; `from_gguf` takes them from a file.

        Args:
            tokens: each token's text in UTF-8, by id: in SPM with U+2581 for a space, in BPE with a
                character for each byte, see `bpe`.
            scores: each token's score, float32; the higher is merged first. None: all 0. SPM's alone.
            types: each token's type as GGUF counts them (1 normal, 2 unknown, 3 control, 4 user-defined,
                5 unused, 6 byte). None: all normal.
            roles: ids of further special tokens that a file can name: "eot", "eom", "fim_pre", ….
            strip_after_special: special tokens swallow the white space behind them (Phi-3).
            merges: BPE's, pairs with a space between them, the best first; None: SPM.
            pre_tokenizer: what cuts a text into words for BPE; no spaces are then put in front.

        Raises:
            ModelFileError: two tokens share a text, a score is missing or NaN, a type is missing, or a byte
                token is not written `<0xXX>`.
        """
        texts = [token or b"[EMPTY_%d]" % i for i, token in enumerate(tokens)]
        ids = {text: i for i, text in enumerate(texts)}
        if len(ids) != len(texts):
            twice = next(text for i, text in enumerate(texts) if ids[text] != i)
            raise ModelFileError("two entries of tokenizer.ggml.tokens have one text", got=repr(twice))
        scores = np.zeros(len(texts)) if scores is None else _one_each("scores", scores, len(texts))
        types = np.ones(len(texts), int) if types is None else _one_each("token_type", types, len(texts))
        roles = {**(roles or {}), **({} if eos_id is None else {"eos": eos_id})}
        kinds, self.eog_ids = token_kinds(ids, types.tolist(), roles)
        self.bos_id, self.eos_id, self.unk_id = bos_id, eos_id, unk_id
        self.add_bos, self.add_eos = add_bos, add_eos
        self._bpe = None if merges is None else BpeMerger(ids, merges, pre_tokenizer or PreTokenizer(()))
        self.add_space_prefix = add_space_prefix and self._bpe is None
        piece = spm_piece if self._bpe is None else bpe_piece
        self._pieces = [piece(text, kind) for text, kind in zip(texts, kinds, strict=True)]
        self._merger = SpmMerger(ids, scores) if self._bpe is None else self._bpe
        self._sort_specials(texts, kinds, strip_after_special)
        self._has_space = SPACE in ids

    def _sort_specials(self, texts: Sequence[bytes], kinds: Sequence[int], strip: bool) -> None:
        """The tokens that a text is cut at, longest first; control and unknown ones only when asked for."""
        hidden = Kind.CONTROL | Kind.UNKNOWN
        special = [i for i, kind in enumerate(kinds) if kind & (hidden | Kind.USER_DEFINED)]
        special.sort(key=lambda i: -len(texts[i]))
        self._hidden = frozenset(i for i in special if kinds[i] & hidden)
        self._specials = {
            True: [(i, texts[i]) for i in special],
            False: [(i, texts[i]) for i in special if i not in self._hidden],
        }
        self._byte_ids = frozenset(i for i, kind in enumerate(kinds) if kind == Kind.BYTE)
        plain = (b"<unk>", b"<s>", b"<|endoftext|>")
        self._strip_after = frozenset(i for i in special if strip and texts[i] not in plain)

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Tokenizer:
        """The tokenizer of an open GGUF file; what it leaves out takes llama.cpp's defaults.

        Raises:
            UnsupportedModelError: the file's tokenizer is not SentencePiece's.
            ModelFileError: it has no vocabulary, or a damaged one.
        """
        return cls(**read_vocabulary(file.metadata))

    @classmethod
    def for_model(cls, file: GGUFFile, vocab_size: int) -> Tokenizer:
        """The tokenizer of a model's file; of a vocabulary that is not supported, one that knows ids alone.

        Args:
            file: an open GGUF file.
            vocab_size: how many tokens the model has, for a file without a vocabulary.

        Raises:
            ModelFileError: the file's vocabulary is a damaged one.
        """
        try:
            return cls.from_gguf(file)
        except UnsupportedModelError as error:
            return cls._of_ids(file, vocab_size, str(error))

    @classmethod
    def _of_ids(cls, file: GGUFFile, vocab_size: int, why: str) -> Tokenizer:
        """Knows which ids end a text, by the names that tokens have in every vocabulary, and no text."""
        specials = read_special_ids(file.metadata, vocab_size)
        tokenizer = cls([b"[%d]" % i for i in range(vocab_size)], **specials)
        tokenizer.unsupported = why
        texts = file.metadata.get("tokenizer.ggml.tokens")
        if isinstance(texts, list):
            ids = {text: i for i, text in enumerate(texts)}
            tokenizer.eog_ids |= token_kinds(ids, [1] * len(texts), specials["roles"])[1]
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; ids are 0 to `vocab_size` - 1."""
        return len(self._pieces)

    def encode(
        self,
        text: str | bytes,
        *,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
        parse_special: bool = False,
    ) -> list[int]:
        """The token ids of a text.

        Args:
            text: any `str` (a lone surrogate counts as its three bytes) or any bytes, UTF-8 or not.
            add_bos: put BOS in front; None: as the file says. A BOS already there is not looked at.
            add_eos: put EOS at the end; None: as the file says.
            parse_special: the text of a control token (`</s>`) becomes that token; otherwise it is text.

        Raises:
            TokenizerError: the vocabulary lacks a byte that the text needs, or BOS or EOS.
            UnsupportedModelError: the vocabulary is of a kind that is not supported.
        """
        if self.unsupported is not None:
            raise UnsupportedModelError(self.unsupported, hint="give token ids instead of a text")
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
        ids = self._added("BOS", self.bos_id, self.add_bos if add_bos is None else add_bos)
        after_special = True
        for fragment in partition(data, self._specials[bool(parse_special)], self._strip_after):
            if isinstance(fragment, int):
                ids.append(fragment)
                after_special = True
            else:
                ids += self._fragment_ids(fragment, after_special)
                after_special = False
        return ids + self._added("EOS", self.eos_id, self.add_eos if add_eos is None else add_eos)

    def _fragment_ids(self, fragment: bytes, after_special: bool) -> list[int]:
        if self._bpe is not None:
            return self._bpe.ids(fragment)
        prefix = b" " if self.add_space_prefix and after_special else b""
        return self._merger.ids((prefix + fragment).replace(b" ", SPACE))

    def _added(self, name: str, token: int | None, wanted: bool) -> list[int]:
        if wanted and token is None:
            hint = f"pass add_{name.lower()}=False"
            raise TokenizerError(f"the vocabulary has no {name} token to add", hint=hint)
        return [token] if wanted and token is not None else []

    def decode(self, ids: Iterable[int], *, skip_special: bool = False, parse_special: bool = False) -> str:
        """The text that `encode` was given, with the same `parse_special`: `decode_bytes` as a `str`.

        Lone surrogates come back; bytes that are no UTF-8 become U+FFFD, so for those use `decode_bytes`.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        data = self.decode_bytes(ids, skip_special=skip_special, parse_special=parse_special)
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    def decode_bytes(
        self, ids: Iterable[int], *, skip_special: bool = False, parse_special: bool = False
    ) -> bytes:
        """The bytes that `encode` was given: the pieces, less what `encode` adds.

        That is BOS in front, the file's EOS at the end, and the space before each fragment. One thing does
        not come back: U+2581 in a text has a space's tokens, in llama.cpp too, and comes back as a space.

        Args:
            ids: token ids.
            skip_special: leave control and unknown tokens out instead of writing them as text.
            parse_special: what `encode` was told: True takes the space after a control token as added.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        tokens = [self._checked(token) for token in ids]
        if tokens and tokens[0] == self.bos_id:
            del tokens[0]
        if tokens and tokens[-1] == self.eos_id and self.add_eos:
            del tokens[-1]
        cuts = frozenset(token for token, _ in self._specials[bool(parse_special)])
        skipped = self._hidden if skip_special else frozenset()
        data = bytearray()
        for cut, group in groupby(tokens, cuts.__contains__):
            part = b"".join(self._parts(token for token in group if token not in skipped))
            data += part[1:] if self.add_space_prefix and not cut and part.startswith(b" ") else part
        return bytes(data)

    def _parts(self, tokens: Iterable[int]) -> Iterator[bytes]:
        if self._bpe is not None:
            return (self._pieces[token] for token in tokens)
        return joined_spm(tokens, self._pieces, self._byte_ids, has_space=self._has_space)

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """One token's bytes, often only a part of a character, as `llama_token_to_piece` gives them.

        Args:
            token: its id.
            special: False gives nothing for control and unknown tokens.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        token = self._checked(token)
        return b"" if not special and token in self._hidden else self._pieces[token]

    def _checked(self, token: int) -> int:
        token = index(token)
        if not 0 <= token < len(self._pieces):
            raise TokenizerError(
                "a token id is outside the vocabulary", got=token, wanted=f"0 to {len(self._pieces) - 1}"
            )
        return token

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} tokens, bos_id={self.bos_id}, eos_id={self.eos_id})"


def _one_each(name: str, values: Sequence[float] | np.ndarray, n: int) -> np.ndarray:
    if len(values) != n:
        what = f"tokenizer.ggml.{name} has not one entry for each token"
        raise ModelFileError(what, got=len(values), wanted=n)
    return np.asarray(values)
