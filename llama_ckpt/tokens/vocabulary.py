"""Reading the vocabulary out of GGUF metadata, with llama.cpp's defaults for what a file leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llama_ckpt.errors import ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.cursor import shown
from llama_ckpt.tokens.pre_tokenizers import PRE_TOKENIZERS
from llama_ckpt.tokens.pre_tokenizing import PreTokenizer

__all__ = ["read_special_ids", "read_vocabulary"]

_FURTHER_ROLES = ("eot", "eom", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")
_OLDER_NAMES = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
_DEFAULT_IDS = {"spm": {"bos": 1, "eos": 2, "unknown": 0}, "bpe": {"bos": 11, "eos": 11}}
_LONGEST_TEXT, _ALL_TEXTS = 1 << 16, 1 << 24
"""Bytes of one token's text and of all: the longest known has 512, the largest vocabulary 4 MB."""

_KINDS = {"llama": "spm", "gpt2": "bpe"}


def read_vocabulary(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Tokenizer` that a file's metadata says.

    Raises:
        UnsupportedModelError: the file's tokenizer is neither SentencePiece's nor byte-level BPE, or has a
            pre-tokenizer that is not known.
        ModelFileError: there is no vocabulary, or a damaged one.
    """
    model = metadata.get("tokenizer.ggml.model")
    kind = _KINDS.get(model) if isinstance(model, str) else None
    if kind is None:
        raise UnsupportedModelError(
            "the file's tokenizer (tokenizer.ggml.model) is neither SentencePiece's nor byte-level BPE",
            got="none" if model is None else shown(model),
            wanted="'llama' or 'gpt2'",
        )
    pre = _pre_tokenizer(metadata) if kind == "bpe" else None
    defaults = dict(_DEFAULT_IDS[kind])
    if pre is not None and not pre.has_bos:
        del defaults["bos"]
    # llama.cpp reads a token's text as a C string, which ends at the first NUL.
    tokens = [_c_string(token) for token in _array(metadata, "tokens", 1)]
    _check_lengths("tokens", tokens)
    n = len(tokens)
    roles = {role: _special_id(metadata, role, n, None) for role in _FURTHER_ROLES}
    name = str(metadata.get("general.name", "")).lower()
    return {
        "tokens": tokens,
        "scores": _array(metadata, "scores", n, optional=True),
        "types": _array(metadata, "token_type", n, optional=True),
        "bos_id": _special_id(metadata, "bos", n, defaults.get("bos")),
        "eos_id": _special_id(metadata, "eos", n, defaults["eos"]),
        "unk_id": _special_id(metadata, "unknown", n, defaults.get("unknown")),
        "add_bos": _flag(metadata, "add_bos_token", pre is None or pre.add_bos),
        "add_eos": _flag(metadata, "add_eos_token", False),
        "add_space_prefix": _flag(metadata, "add_space_prefix", pre is None),
        "roles": {role: token for role, token in roles.items() if token is not None},
        "strip_after_special": "phi-3" in name or "phi3" in name,
        "merges": None if pre is None else _merges(metadata),
        "pre_tokenizer": pre,
    }


def _pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre", "")
    if not isinstance(name, str):
        raise ModelFileError("tokenizer.ggml.pre is not a text", got=shown(name), wanted="a name")
    if (name or "default") not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            "the file's pre-tokenizer (tokenizer.ggml.pre)",
            got=shown(name),
            wanted="one that is known here, such as 'llama-bpe' or 'smollm'",
        )
    return PRE_TOKENIZERS[name or "default"]


def _merges(metadata: Mapping[str, Any]) -> list[bytes]:
    merges = _array(metadata, "merges", 0)
    if not isinstance(merges, list):
        raise ModelFileError("tokenizer.ggml.merges", got=shown(merges), wanted="texts")
    texts = [_c_string(merge) for merge in merges]
    _check_lengths("merges", texts)
    return texts


def _check_lengths(name: str, texts: list[bytes]) -> None:
    """What a text is cut by and merged from takes time and memory for every byte of it."""
    key = f"tokenizer.ggml.{name}"
    longest, total = max(map(len, texts), default=0), sum(map(len, texts))
    if longest > _LONGEST_TEXT:
        raise ModelFileError(
            f"the longest of {key}", got=f"{longest} bytes", wanted=f"{_LONGEST_TEXT} at most"
        )
    if total > _ALL_TEXTS:
        raise ModelFileError(f"{key}, all together", got=f"{total} bytes", wanted=f"{_ALL_TEXTS} at most")


def _c_string(text: Any) -> bytes:
    return bytes(text).split(b"\0", 1)[0]


def read_special_ids(metadata: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """What a file says of its special tokens, as arguments of `Tokenizer`, whatever its vocabulary's kind.

    Raises:
        ModelFileError: an id or a flag is of another kind.
    """
    ids = {role: _special_id(metadata, role, vocab_size, None) for role in ("bos", "eos", *_FURTHER_ROLES)}
    return {
        "bos_id": ids.pop("bos"),
        "eos_id": ids.pop("eos"),
        "unk_id": None,
        "add_bos": _flag(metadata, "add_bos_token", False),
        "add_eos": _flag(metadata, "add_eos_token", False),
        "add_space_prefix": False,
        "roles": {role: token for role, token in ids.items() if token is not None},
    }


def _array(metadata: Mapping[str, Any], name: str, at_least: int, *, optional: bool = False) -> Any:
    key = f"tokenizer.ggml.{name}"
    value = metadata.get(key)
    if value is None and optional:
        return None
    if not isinstance(value, list | np.ndarray) or len(value) < at_least:
        raise ModelFileError(
            f"the vocabulary's {key} is missing or too short",
            got=f"{len(value)} entries" if isinstance(value, list | np.ndarray) else repr(value),
            wanted=f"an array of at least {at_least}",
        )
    return value[:at_least] if optional else value


def _special_id(metadata: Mapping[str, Any], role: str, n: int, default: int | None) -> int | None:
    """A special token's id; one outside the vocabulary counts as not given, as in llama.cpp."""
    token = default if default is not None and default < n else None
    for name in (role, _OLDER_NAMES.get(role)):
        key = f"tokenizer.ggml.{name}_token_id"
        if name is None or key not in metadata:
            continue
        value = metadata[key]
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise ModelFileError(f"{key} is not a token id", got=repr(value), wanted="a number from 0 up")
        token = int(value) if value < n else token
    return token


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    key = f"tokenizer.ggml.{name}"
    value = metadata.get(key, default)
    if not isinstance(value, bool | np.bool_):
        raise ModelFileError(f"{key} is not a truth value", got=repr(value), wanted="true or false")
    return bool(value)
