"""The vocabulary of a seeded model: the first entries of another file's, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from llama_ckpt.errors import ModelFileError, OptionError
from llama_ckpt.gguf.file import MetadataValue, open_gguf

__all__ = ["NO_VOCABULARY", "vocabulary_keys"]

NO_VOCABULARY: Final = "none"
"""In the place of a file: a model that works on token ids alone."""

_SMALLEST: Final = 259  # three special tokens and all bytes
_KIND: Final = "tokenizer.ggml.model"
_SPM_KEYS: Final = (
    *("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"),
    *("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.unknown_token_id"),
)
_BPE_KEYS: Final = (
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type",
)
_BPE_IDS: Final = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")


def vocabulary_keys(source: Path, size: int) -> tuple[dict[str, MetadataValue], dict[str, MetadataValue]]:
    """The keys of the first `size` tokens of a file's vocabulary, and llama.cpp's defaults of some of them.

    Args:
        source: a GGUF file, or `NO_VOCABULARY`.
        size: how many tokens.

    Raises:
        OptionError: the file has not as many tokens, or so few are wanted that bytes have none.
        ModelFileError, UnsupportedModelError: the file is damaged or has no vocabulary of a Llama.
    """
    if str(source) == NO_VOCABULARY:
        return {_KIND: NO_VOCABULARY}, {}
    metadata = open_gguf(source).metadata
    byte_pairs = metadata.get(_KIND) == "gpt2"
    keys = (_KIND, *(_BPE_KEYS if byte_pairs else _SPM_KEYS))
    for key in keys:
        if key not in metadata:
            raise ModelFileError(f"{source}: {key}", got="no such key", wanted="a Llama vocabulary")
    n_tokens = len(metadata["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    if not _SMALLEST <= size <= n_tokens:
        wanted = f"{_SMALLEST} to {n_tokens}, the entries of {source.name}"
        hint = "or take --vocabulary none, for a model of token ids alone"
        raise OptionError("vocab", got=size, wanted=wanted, hint=None if size < _SMALLEST else hint)
    values = {key: _first(metadata[key], size) for key in keys}
    if byte_pairs:
        return _byte_pairs(values, metadata, size), {}
    flags: dict[str, MetadataValue] = {
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
    }
    return values | flags, dict(flags)


def _first(value: MetadataValue, size: int) -> MetadataValue:
    return value[:size] if isinstance(value, list | np.ndarray) else value


def _byte_pairs(
    values: dict[str, MetadataValue], metadata: Mapping[str, MetadataValue], size: int
) -> dict[str, MetadataValue]:
    """The merges whose tokens are there, and the special ids that are."""
    tokens, merges = values["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    assert isinstance(tokens, list) and isinstance(merges, list)
    kept = frozenset(tokens)
    values["tokenizer.ggml.merges"] = [merge for merge in merges if merge.replace(b" ", b"") in kept]
    ids = {key: metadata.get(key) for key in _BPE_IDS}
    return values | {key: value for key, value in ids.items() if isinstance(value, int) and value < size}
