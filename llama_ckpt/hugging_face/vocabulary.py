"""A folder's vocabulary in GGUF's keys: `tokenizer.json`, byte-level BPE or SentencePiece's; else none.

A byte-level vocabulary is taken where its expression is, letter by letter, one that is known here;
with any other the model works on token ids, since nearly the same tokens are other tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from llama_ckpt.errors import ModelFileError
from llama_ckpt.hugging_face.checked import checked_tokenizer
from llama_ckpt.hugging_face.tensors import json_of

__all__ = ["vocabulary_keys"]

_KEY: Final = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _ANY_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_EXPRESSIONS: Final = {
    _WORDS + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _LINES: "llama-bpe",
    _WORDS + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _LINES: "qwen2",
}


def vocabulary_keys(folder: Path, config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The keys of a vocabulary of `size` tokens; those of none where it is not read here."""
    keys: dict[str, Any] = {_KEY + f"{role}_token_id": id for role, id in _ids(config).items()}
    path = folder / "tokenizer.json"
    said = checked_tokenizer(path) if path.is_file() else {}
    model = said.get("model", {})
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        return {_KEY + "model": "none", **keys}
    texts, types = _tokens(said, size)
    merges = [_pair(one) for one in model.get("merges", [])]
    flags = {_KEY + "add_bos_token": _adds_bos(folder, said, config)}
    shared = {_KEY + "tokens": texts, _KEY + "token_type": np.asarray(types, np.int32), **keys, **flags}
    if model.get("byte_fallback"):
        return _sentence_piece(said, texts, merges, shared)
    pre = _pre_tokenizer(said.get("pre_tokenizer") or {})
    if pre is None:
        return {_KEY + "model": "none", **keys}
    if not merges:
        raise ModelFileError(f"{path}: model.merges", got="none", wanted="those of byte-level BPE")
    joined = [_utf8(" ".join(pair)) for pair in merges]
    return {_KEY + "model": "gpt2", _KEY + "pre": pre, **shared, _KEY + "merges": joined}


def _ids(config: Mapping[str, Any]) -> dict[str, int]:
    """The special ids; of several ends of a text the first, as the others are known by their texts."""
    ids = {role: config.get(f"{role}_token_id") for role in ("bos", "eos")}
    firsts = {role: id[0] if isinstance(id, list) and id else id for role, id in ids.items()}
    return {role: id for role, id in firsts.items() if isinstance(id, int)}


def _pair(merge: Any) -> tuple[str, str]:
    first, second = merge if isinstance(merge, list) else merge.partition(" ")[::2]
    return first, second


def _tokens(said: Mapping[str, Any], size: int) -> tuple[list[bytes], list[int]]:
    texts = [b"[PAD%d]" % number for number in range(size)]
    types = [_UNUSED] * size
    unknown = said["model"].get("unk_token")
    for text, id in said["model"]["vocab"].items():
        if id < size:
            texts[id] = _utf8(text)
            types[id] = _UNKNOWN if text == unknown else _BYTE if _is_byte(text) else _NORMAL
    for added in said.get("added_tokens", []):
        if added["id"] < size and added["content"] != unknown:
            texts[added["id"]] = _utf8(added["content"])
            types[added["id"]] = _CONTROL if added.get("special") else _USER
    return texts, types


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON can write half a pair, which is no UTF-8


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _sentence_piece(
    said: Mapping[str, Any], texts: list[bytes], merges: list[tuple[str, str]], shared: dict[str, Any]
) -> dict[str, Any]:
    """What is joined first has the highest score: the pieces in the order of their merges."""
    rank: dict[bytes, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault(_utf8("".join(pair)), number)
    scores = [-float(rank.get(text, len(merges))) for text in texts]
    added = {entry["id"] for entry in said.get("added_tokens", [])}
    scores = [0.0 if id in added else score for id, score in enumerate(scores)]
    shared = shared | {_KEY + "scores": np.asarray(scores, np.float32)}
    return {_KEY + "model": "llama", **shared, _KEY + "add_space_prefix": _adds_space(said)}


def _adds_space(said: Mapping[str, Any]) -> bool:
    text = str(said.get("normalizer")) + str(said.get("pre_tokenizer"))
    return "Prepend" in text or "'prepend_scheme': 'first'" in text or "'prepend_scheme': 'always'" in text


def _adds_bos(folder: Path, said: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    path = folder / "tokenizer_config.json"
    flag = json_of(path).get("add_bos_token") if path.is_file() else None
    if isinstance(flag, bool):
        return flag
    bos = _ids(config).get("bos")
    named = {entry["content"] for entry in said.get("added_tokens", []) if entry["id"] == bos}
    return any(f"'{text}'" in str(said.get("post_processor")) for text in named)


def _pre_tokenizer(said: Mapping[str, Any]) -> str | None:
    """The name of what cuts a text into words; None for one that is not known."""
    steps = said.get("pretokenizers") or [said]
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    spaced, own_words = last.get("add_prefix_space"), last.get("use_regex", True)
    if kinds == ["Split", "ByteLevel"] and not own_words and not spaced:
        return _EXPRESSIONS.get(steps[0].get("pattern", {}).get("Regex", ""))
    if spaced or not own_words:
        return None
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    return "gpt-2" if kinds == ["ByteLevel"] else None
