"""Reading a manifest of reference dumps, and believing nothing in it.

A field that is missing, of the wrong type, or at odds with another is a `DumpError` that names the
file and the field.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from llama_ckpt.dumps.manifest import SCHEMA, DumpEntry, Manifest
from llama_ckpt.errors import DumpError
from llama_ckpt.points import BLOCK_POINTS, EXPERT_POINTS

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
    root = _typed(document, dict, str(path))
    schema = _typed(_found(root, "schema", str(path)), int, f"{path}: schema")
    if schema != SCHEMA:
        raise DumpError(f"{path}: schema", got=schema, wanted=SCHEMA)
    manifest: Manifest = _record(Manifest, root, str(path))
    names = [entry.name for entry in manifest.dumps]
    if len(set(names)) != len(names):
        raise DumpError(f"{path}: names of dumps", got=names, wanted="each name once")
    if manifest.model.derived_from is not None:
        for key in ("sha256", "how"):
            _found(manifest.model.derived_from, key, f"{path}: model: derived_from")
    return manifest


def _record(kind: Any, value: object, where: str) -> Any:
    """A dataclass from a JSON object: its annotations say what each field must be.

    Written here and not left to pydantic, which takes 0.1 s to import and build its checks, in commands that
    need nothing else of it, and whose errors would have to be put into this program's one sentence.
    """
    fields = _typed(value, dict, where)
    made = {}
    for name, annotation in _annotations(kind).items():
        # A field with a default in Python is wanted in the file all the same: only these came later.
        if name in fields or name not in ("last_row", "last_logits_only", "context"):
            made[name] = _field(annotation, _found(fields, name, where), f"{where}: {name}")
    record = kind(**made)
    if isinstance(record, DumpEntry):
        check_entry(record, where)
    return record


_annotations = functools.cache(get_type_hints)  # it evaluates strings, and a folder has many records


def _field(annotation: Any, value: Any, where: str) -> Any:
    """A value as its annotation says: a plain type, a record, `tuple[X, ...]`, `Mapping[str, X]`, or None."""
    items = get_args(annotation)
    if type(None) in items:
        return None if value is None else _field(items[0], value, where)
    if get_origin(annotation) is tuple:
        listed = _typed(value, list, where)
        return tuple(_field(items[0], item, f"{where}[{i}]") for i, item in enumerate(listed))
    if get_origin(annotation) is Mapping:
        fields = _typed(value, dict, where)
        return {name: _field(items[1], item, f"{where}: {name}") for name, item in fields.items()}
    if is_dataclass(annotation):
        return _record(annotation, value, where)
    return _typed(value, annotation, where)


def _found(fields: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in fields:
        raise DumpError(f"{where}: {key}", got="nothing", wanted="a value")
    return fields[key]


def _typed(value: Any, kind: type[T], where: str) -> T:
    if kind is dict and not isinstance(value, dict):
        raise DumpError(where, got=type(value).__name__, wanted="a JSON object")
    if kind is float and type(value) is int:
        value = float(value)
    # bool is a subclass of int: `type() is` keeps `true` out of the numbers.
    if type(value) is not kind:
        raise DumpError(where, got=repr(value)[:60], wanted=kind.__name__)
    return value


def check_entry(entry: DumpEntry, where: str) -> None:
    """Check that the fields of an entry agree with each other.

    Raises:
        DumpError: which field, got, wanted.
    """
    n_tokens = len(entry.token_ids)
    block_points = {point.name for point in (*BLOCK_POINTS, *EXPERT_POINTS)}
    kept = ("last_row", "last_logits_only") if entry.last_row and entry.last_logits_only else ()
    wanted: list[tuple[str, object, object, bool]] = [
        ("token_ids", entry.token_ids, "at least one", n_tokens > 0),
        ("file", entry.file, "a plain *.safetensors name", _plain(entry.file)),
        ("positions", len(entry.positions), n_tokens, len(entry.positions) == n_tokens),
        ("greedy_tokens", len(entry.greedy_tokens), n_tokens, len(entry.greedy_tokens) == n_tokens),
        ("blocks", entry.blocks, f"below {entry.n_layers}, ascending", _ascending(entry)),
        ("points", entry.points, sorted(block_points), {"out"} <= set(entry.points) <= block_points),
        ("what is kept", " and ".join(kept), "one of them at most", not kept),
    ]
    for field, got, right, holds in wanted:
        if not holds:
            raise DumpError(f"{where}: {field}", got=got, wanted=right)


def _plain(file: str) -> bool:
    return file == Path(file).name and file.endswith(".safetensors") and "\\" not in file


def _ascending(entry: DumpEntry) -> bool:
    in_range = all(0 <= block < entry.n_layers for block in entry.blocks)
    return in_range and list(entry.blocks) == sorted(set(entry.blocks))
