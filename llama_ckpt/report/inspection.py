"""What a GGUF file holds, without reading a weight: as a record for JSON, and as lines of text.

Whatever of a file cannot be computed here, all that it says is shown, and each reason beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import SUPPORTED_TYPES, check_llama

__all__ = ["inspection", "inspection_lines"]

KEYS = {
    "n_layers": "block_count",
    "n_heads": "attention.head_count",
    "n_kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "width": "embedding_length",
    "ffn": "feed_forward_length",
    "vocab_size": "vocab_size",
    "context_length": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_scale": "rope.scaling.factor",
    "add_bos": "tokenizer.ggml.add_bos_token",
    "add_space_prefix": "tokenizer.ggml.add_space_prefix",
}
"""What is shown, and the key that it is read from, less the architecture's name in front."""

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def inspection(file: GGUFFile) -> dict[str, Any]:
    """Everything that `inspect` shows, in plain values.

    Returns:
        `path`, `version`, `name`, `architecture`, `config` (by the names of `LlamaConfig`, and the
        tokenizer's flags; of a file that has no configuration of a Llama what its keys say, or None),
        `keys` (the key of each), `defaulted` (keys that the file left out), `further` (the architecture's
        other keys), `tied_output`, `tokenizer` (`{"model", "pre", "tokens", "supported", "reason"}`),
        `tensors` (`{"type", "count", "bytes", "supported"}` for each type), `all_tensors` (`{"name", "shape",
        "type"}`), `computable` and, where it is false, `reason`: every reason, one after the other.
    """
    config, why = _config(file)
    tokenizer, vocabulary = _tokenizer(file)
    architecture = _text(file, "general.architecture")
    keys = {name: key if "tokenizer." in key else f"{architecture}.{key}" for name, key in KEYS.items()}
    shown = {name: _shown(config, tokenizer, file, name, key) for name, key in keys.items()}
    reasons = [why] if why else []
    if config is not None:
        reasons += _reasons(file, config)
    return {
        "path": str(file.path),
        "version": file.version,
        "name": _text(file, "general.name"),
        "architecture": architecture,
        "config": shown,
        "keys": keys,
        "defaulted": list(config.defaulted) if config else [],
        "further": _further(file, architecture, set(keys.values())),
        "tied_output": bool(file.tensors) and "output.weight" not in file.tensors,
        "tokenizer": vocabulary,
        "tensors": _by_type(file),
        "all_tensors": [
            {"name": info.name, "shape": list(info.shape), "type": info.type.name}
            for info in file.tensors.values()
        ],
        "computable": not reasons,
        "reason": "; ".join(reasons) or None,
    }


def _config(file: GGUFFile) -> tuple[LlamaConfig | None, str | None]:
    try:
        return LlamaConfig.from_gguf(file), None
    except LlamaCkptError as error:
        return None, str(error)


def _tokenizer(file: GGUFFile) -> tuple[Tokenizer | None, dict[str, Any]]:
    """The tokenizer, where it can be made, and what is shown of it."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    shown: dict[str, Any] = {
        "model": _text(file, "tokenizer.ggml.model"),
        "pre": _text(file, "tokenizer.ggml.pre"),
        "tokens": len(tokens) if isinstance(tokens, list) else 0,
    }
    try:
        return Tokenizer.from_gguf(file), {**shown, "supported": True, "reason": None}
    except LlamaCkptError as error:
        return None, {**shown, "supported": False, "reason": str(error)}


def _reasons(file: GGUFFile, config: LlamaConfig) -> list[str]:
    try:
        check_llama(file, config)
    except LlamaCkptError as error:
        return [str(error)]
    return []


def _shown(
    config: LlamaConfig | None, tokenizer: Tokenizer | None, file: GGUFFile, name: str, key: str
) -> Any:
    """What holds for a name, else what the file's key says."""
    for source in (config, tokenizer):
        if hasattr(source, name):
            return getattr(source, name)
    return _plain(file.metadata.get(key))


def _further(file: GGUFFile, architecture: str, known: set[str]) -> dict[str, Any]:
    return {
        key: _plain(value)
        for key, value in file.metadata.items()
        if key.startswith(f"{architecture}.") and key not in known
    }


def _plain(value: Any) -> Any:
    """A value for JSON; of an array its length."""
    return f"an array of {len(value)}" if isinstance(value, list | np.ndarray) else value


def _text(file: GGUFFile, key: str) -> str:
    value = file.metadata.get(key)
    return value if isinstance(value, str) else ""


def _by_type(file: GGUFFile) -> list[dict[str, Any]]:
    """Number and size of the tensors of each type, the type that holds most bytes first."""
    totals: dict[str, dict[str, Any]] = {}
    for info in file.tensors.values():
        supported = info.type in SUPPORTED_TYPES
        new = {"type": info.type.name, "count": 0, "bytes": 0, "supported": supported}
        total = totals.setdefault(info.type.name, new)
        total["count"] += 1
        total["bytes"] += info.nbytes
    return sorted(totals.values(), key=lambda total: -total["bytes"])


def inspection_lines(record: dict[str, Any], *, every_tensor: bool = False) -> Iterator[str]:
    """The record of `inspection` as a table; `every_tensor` with a line for each of them."""
    name = ascii(record["name"])[1:-1] or "no name"
    yield f"{record['path']}: GGUF {record['version']}, {name}"
    yield ""
    yield _row("architecture", record["architecture"] or "-", "general.architecture")
    for short, value in record["config"].items():
        key = record["keys"][short]
        yield _row(short, value, f"default, no {key}" if key in record["defaulted"] else key)
    if record["tensors"]:
        tied = "the token embedding" if record["tied_output"] else "a matrix of its own"
        yield _row("output", "tied" if record["tied_output"] else "separate", tied)
    for key, value in record["further"].items():
        yield _row("", value, key)
    yield ""
    yield from _tokenizer_lines(record["tokenizer"])
    if record["tensors"]:
        yield ""
    for total in record["tensors"]:
        note = "" if total["supported"] else "  not supported"
        yield f"  {total['type']:<10}{total['count']:>6} tensors {_size(total['bytes']):>12}{note}"
    if every_tensor:
        yield ""
        for one in record["all_tensors"]:
            yield f"  {one['type']:<10}{' x '.join(map(str, one['shape'])):>16}  {ascii(one['name'])[1:-1]}"
    yield ""
    yield f"  {_state(record)}"


def _row(name: str, value: object, note: str) -> str:
    return f"  {name:<18}{_value(value):>12}  {note}"


def _tokenizer_lines(vocabulary: dict[str, Any]) -> Iterator[str]:
    kind = " ".join(ascii(vocabulary[name])[1:-1] for name in ("model", "pre") if vocabulary[name])
    yield f"  tokenizer {kind or 'none'}, {vocabulary['tokens']} tokens"
    if not vocabulary["supported"]:
        yield f"  token ids only: {vocabulary['reason']}"


def _value(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    return ascii(text)[1:-1]


def _size(n_bytes: float) -> str:
    for unit in UNITS:
        if n_bytes < 1024 or unit == UNITS[-1]:
            break
        n_bytes /= 1024
    return f"{n_bytes:.1f} {unit}" if unit != "B" else f"{n_bytes:.0f} B"


def _state(record: dict[str, Any]) -> str:
    if record["computable"]:
        return "every tensor of a Llama is there"
    return f"not computable: {record['reason']}"
