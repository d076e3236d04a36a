"""What a GGUF file holds, without reading a weight: as a record for JSON, and as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama

__all__ = ["inspection", "inspection_lines"]

KEYS = {
    "n_layers": "llama.block_count",
    "n_heads": "llama.attention.head_count",
    "n_kv_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.attention.key_length",
    "width": "llama.embedding_length",
    "ffn": "llama.feed_forward_length",
    "vocab_size": "llama.vocab_size",
    "context_length": "llama.context_length",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base",
    "rope_scale": "llama.rope.scaling.factor",
    "add_bos": "tokenizer.ggml.add_bos_token",
    "add_space_prefix": "tokenizer.ggml.add_space_prefix",
}
"""What is shown, and the key that it is read from."""

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def inspection(file: GGUFFile) -> dict[str, Any]:
    """Everything that `inspect` shows, in plain values.

    Returns:
        `path`, `version`, `name`, `config` (by the names of `LlamaConfig`, and the tokenizer's flags),
        `defaulted` (keys that the file left out), `tied_output`, `tensors` (`{"type", "count", "bytes"}` for
        each type), `computable` and, where it is false, `reason`.

    Raises:
        ModelFileError, UnsupportedModelError: the file has no configuration or vocabulary of a Llama.
    """
    config, tokenizer = LlamaConfig.from_gguf(file), Tokenizer.from_gguf(file)
    flags = {"add_bos": tokenizer.add_bos, "add_space_prefix": tokenizer.add_space_prefix}
    try:
        check_llama(file, config)
        reason = None
    except LlamaCkptError as error:
        reason = str(error)
    return {
        "path": str(file.path),
        "version": file.version,
        "name": config.name,
        "config": {name: flags[name] if name in flags else getattr(config, name) for name in KEYS},
        "defaulted": list(config.defaulted),
        "tied_output": config.tied_output,
        "tensors": _by_type(file),
        "computable": reason is None,
        "reason": reason,
    }


def _by_type(file: GGUFFile) -> list[dict[str, Any]]:
    """Number and size of the tensors of each type, the type that holds most bytes first."""
    totals: dict[str, dict[str, Any]] = {}
    for info in file.tensors.values():
        total = totals.setdefault(info.type.name, {"type": info.type.name, "count": 0, "bytes": 0})
        total["count"] += 1
        total["bytes"] += info.nbytes
    return sorted(totals.values(), key=lambda total: -total["bytes"])


def inspection_lines(record: dict[str, Any]) -> Iterator[str]:
    """The record of `inspection` as a table."""
    yield f"{record['path']}: GGUF {record['version']}, {record['name'] or 'no name'}"
    yield ""
    for name, value in record["config"].items():
        key = KEYS[name]
        note = f"default, no {key}" if key in record["defaulted"] else key
        yield f"  {name:<18}{_value(value):>12}  {note}"
    tied = "the token embedding" if record["tied_output"] else "a matrix of its own"
    yield f"  {'output':<18}{'tied' if record['tied_output'] else 'separate':>12}  {tied}"
    yield ""
    for total in record["tensors"]:
        yield f"  {total['type']:<10}{total['count']:>6} tensors {_size(total['bytes']):>12}"
    yield ""
    yield f"  {_state(record)}"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


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
