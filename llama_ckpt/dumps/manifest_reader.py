"""Reading a manifest of reference dumps, and believing nothing in it.

A field that is missing, of the wrong type, or at odds with another is a `DumpError` that names the
file and the field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from llama_ckpt.dumps.manifest import (
    SCHEMA,
    Continuation,
    DumpEntry,
    Manifest,
    ModelRecord,
    Producer,
    Sampling,
)
from llama_ckpt.errors import DumpError
from llama_ckpt.points import BLOCK_POINTS

__all__ = ["check_entry", "read_manifest"]

T = TypeVar("T")


def read_manifest(path: Path) -> Manifest:
    """Read and check a `manifest.json`.

    Raises:
        DumpError: the file is missing, no JSON, of another schema, or a field is wrong.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DumpError(
            f"{path} does not exist", hint="record dumps with: llama-ckpt capture --model M.gguf --out DIR"
        ) from error
    except (OSError, ValueError) as error:
        raise DumpError(
            f"{path} is not readable", got=error, wanted="a manifest in JSON", hint="record it again"
        ) from error
    root = _Fields(document, str(path))
    if root.take("schema", int) != SCHEMA:
        raise DumpError(f"{path}: schema", got=root.take("schema", int), wanted=SCHEMA)
    dumps = tuple(_entry(fields) for fields in root.records("dumps"))
    names = [entry.name for entry in dumps]
    if len(set(names)) != len(names):
        raise DumpError(f"{path}: names of dumps", got=names, wanted="each name once")
    return Manifest(_model(root.record("model")), _producer(root.record("producer")), dumps)


class _Fields:
    """A JSON object whose fields are taken with a check of their type."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise DumpError(where, got=type(value).__name__, wanted="a JSON object")
        self.value: dict[str, Any] = value
        self.where = where

    def take(self, key: str, kind: type[T]) -> T:
        return _typed(self._found(key), kind, f"{self.where}: {key}")

    def optional(self, key: str, kind: type[T]) -> T | None:
        return None if self._found(key) is None else self.take(key, kind)

    def several(self, key: str, kind: type[T]) -> tuple[T, ...]:
        items = self.take(key, list)
        return tuple(_typed(item, kind, f"{self.where}: {key}[{i}]") for i, item in enumerate(items))

    def _found(self, key: str) -> Any:
        if key not in self.value:
            raise DumpError(f"{self.where}: {key}", got="nothing", wanted="a value")
        return self.value[key]

    def record(self, key: str) -> _Fields:
        return _Fields(self._found(key), f"{self.where}: {key}")

    def records(self, key: str) -> list[_Fields]:
        return [_Fields(item, f"{self.where}: {key}[{i}]") for i, item in enumerate(self.take(key, list))]


def _typed(value: Any, kind: type[T], where: str) -> T:
    if kind is float and type(value) is int:
        value = float(value)
    # bool is a subclass of int: `type() is` keeps `true` out of the numbers.
    if type(value) is not kind:
        raise DumpError(where, got=repr(value)[:60], wanted=kind.__name__)
    return value


def _model(fields: _Fields) -> ModelRecord:
    derived = None
    if fields.optional("derived_from", dict) is not None:
        origin = fields.record("derived_from")
        derived = {"sha256": origin.take("sha256", str), "how": origin.take("how", str)}
    return ModelRecord(
        name=fields.take("name", str),
        sha256=fields.take("sha256", str),
        weights_sha256=fields.take("weights_sha256", str),
        tensor_types=fields.several("tensor_types", str),
        hyperparameters=_numbers(fields.record("hyperparameters")),
        derived_from=derived,
    )


def _numbers(fields: _Fields) -> dict[str, float]:
    return {name: fields.take(name, float) for name in fields.value}


def _producer(fields: _Fields) -> Producer:
    return Producer(
        name=fields.take("name", str),
        version=fields.take("version", str),
        llama_cpp_python=fields.take("llama_cpp_python", str),
        system_info=fields.take("system_info", str),
        backend=fields.take("backend", str),
        flash_attention=fields.take("flash_attention", bool),
        type_k=fields.take("type_k", str),
        type_v=fields.take("type_v", str),
        threads=fields.take("threads", int),
        extra_buffers=fields.take("extra_buffers", bool),
    )


def _entry(fields: _Fields) -> DumpEntry:
    entry = DumpEntry(
        name=fields.take("name", str),
        file=fields.take("file", str),
        sha256=fields.take("sha256", str),
        prompt=fields.optional("prompt", str),
        token_ids=fields.several("token_ids", int),
        positions=fields.several("positions", int),
        n_layers=fields.take("n_layers", int),
        blocks=fields.several("blocks", int),
        points=fields.several("points", str),
        greedy_tokens=fields.several("greedy_tokens", int),
        continuation=_continuation(fields.record("continuation")),
        sampling=tuple(_sampling(item) for item in fields.records("sampling")),
        penalized=tuple(_sampling(item) for item in fields.records("penalized")),
        last_row="last_row" in fields.value and fields.take("last_row", bool),
    )
    check_entry(entry, fields.where)
    return entry


def _continuation(fields: _Fields) -> Continuation:
    return Continuation(
        token_ids=fields.several("token_ids", int),
        margins=fields.several("margins", float),
        ended_by=fields.take("ended_by", str),
        text=fields.take("text", str),
        text_base64=fields.take("text_base64", str),
    )


def _sampling(fields: _Fields) -> Sampling:
    return Sampling(
        temperature=fields.take("temperature", float),
        top_k=fields.take("top_k", int),
        top_p=fields.take("top_p", float),
        min_p=fields.take("min_p", float),
        row=fields.take("row", int),
        repeat_penalty=fields.take("repeat_penalty", float),
        penalty_tokens=fields.several("penalty_tokens", int),
    )


def check_entry(entry: DumpEntry, where: str) -> None:
    """Check that the fields of an entry agree with each other.

    Raises:
        DumpError: which field, got, wanted.
    """
    n_tokens = len(entry.token_ids)
    block_points = {point.name for point in BLOCK_POINTS}
    wanted: list[tuple[str, object, object, bool]] = [
        ("token_ids", entry.token_ids, "at least one", n_tokens > 0),
        ("file", entry.file, "a plain *.safetensors name", _plain(entry.file)),
        ("positions", len(entry.positions), n_tokens, len(entry.positions) == n_tokens),
        ("greedy_tokens", len(entry.greedy_tokens), n_tokens, len(entry.greedy_tokens) == n_tokens),
        ("blocks", entry.blocks, f"below {entry.n_layers}, ascending", _ascending(entry)),
        ("points", entry.points, sorted(block_points), {"out"} <= set(entry.points) <= block_points),
    ]
    for field, got, right, holds in wanted:
        if not holds:
            raise DumpError(f"{where}: {field}", got=got, wanted=right)


def _plain(file: str) -> bool:
    return file == Path(file).name and file.endswith(".safetensors") and "\\" not in file


def _ascending(entry: DumpEntry) -> bool:
    in_range = all(0 <= block < entry.n_layers for block in entry.blocks)
    return in_range and list(entry.blocks) == sorted(set(entry.blocks))
