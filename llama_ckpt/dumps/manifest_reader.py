"""Reading a manifest of reference dumps, and believing nothing in it.

A field that is missing, of the wrong type, or at odds with another is a `DumpError` that names the
file and the field.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from llama_ckpt.dumps.manifest import SCHEMA, DumpEntry, Manifest, Sampling
from llama_ckpt.errors import DumpError
from llama_ckpt.listing import some
from llama_ckpt.outside import MOST_LAYERS, quoted, read_json
from llama_ckpt.points import BLOCK_POINTS, EXPERT_POINTS

__all__ = ["check_entry", "read_manifest"]

ENDINGS = ("eos", "max_tokens")
"""What may end a continuation."""

T = TypeVar("T")


def read_manifest(path: Path) -> Manifest:
    """Read and check a `manifest.json`.

    Raises:
        DumpError: the file is missing, no JSON, of another schema, or a field is wrong.
    """
    if not path.exists():
        raise DumpError(
            f"{path} does not exist", hint="record dumps with: llama-ckpt capture --model M.gguf --out DIR"
        )
    document = read_json(path, DumpError, "a manifest in JSON")
    root = _typed(document, dict, str(path))
    schema = _typed(_found(root, "schema", str(path)), int, f"{path}: schema")
    if schema != SCHEMA:
        raise DumpError(f"{path}: schema", got=schema, wanted=SCHEMA)
    manifest: Manifest = _record(Manifest, root, str(path))
    names = [entry.name for entry in manifest.dumps]
    if len(set(names)) != len(names) or len({entry.file for entry in manifest.dumps}) != len(names):
        raise DumpError(f"{path}: names of dumps and files", got=some(names, 8), wanted="each once")
    _check_model(manifest, str(path))
    return manifest


def _check_model(manifest: Manifest, where: str) -> None:
    sums = {"sha256": manifest.model.sha256, "weights_sha256": manifest.model.weights_sha256}
    if (origin := manifest.model.derived_from) is not None:
        for key in ("sha256", "how"):
            _found(origin, key, f"{where}: model: derived_from")
        sums["derived_from: sha256"] = origin["sha256"]
    for key, got in sums.items():
        _check_sha256(f"{where}: model: {key}", got)


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
        _check_sha256(f"{where}: sha256", record.sha256)
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


NAMES: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
} | {
    list: "an array",
    dict: "a JSON object",
}
"""What JSON calls a Python type."""


def _typed(value: Any, kind: type[T], where: str) -> T:
    if kind is dict and not isinstance(value, dict):
        raise DumpError(where, got=quoted(value), wanted="a JSON object")
    if kind is float and type(value) is int:
        value = float(value)
    # bool is a subclass of int: `type() is` keeps `true` out of the numbers.
    if type(value) is not kind:
        raise DumpError(where, got=quoted(value), wanted=NAMES[kind])
    return value


def check_entry(entry: DumpEntry, where: str) -> None:
    """Check that the fields of an entry agree with each other.

    Raises:
        DumpError: which field, got, wanted.
    """
    for field, got, right, holds in (*_of_rows(entry), *_of_blocks(entry), *_of_continuation(entry)):
        if not holds:
            raise DumpError(f"{where}: {field}", got=got, wanted=right)
    for kind in ("sampling", "penalized"):
        for index, setting in enumerate(getattr(entry, kind)):
            _check_sampling(setting, len(entry.token_ids), f"{where}: {kind}[{index}]")


Check = tuple[str, object, object, bool]
"""A field, what it is, what it should be, and whether it is."""


def _of_rows(entry: DumpEntry) -> list[Check]:
    n, positions = len(entry.token_ids), entry.positions
    ids = (*entry.token_ids, *entry.greedy_tokens, *entry.continuation.token_ids)
    in_order = all(a < b for a, b in zip(positions, positions[1:], strict=False))
    rising = in_order and all(0 <= one < 1 << 31 for one in positions[:1] + positions[-1:])
    context = entry.context == 0 or n <= entry.context < 1 << 31  # llama.cpp's counts cells, not positions
    return [
        ("token_ids", "none", "at least one", n > 0),
        ("positions", len(positions), n, len(positions) == n),
        ("positions", "numbers that do not rise from 0 on, below 2^31", "positions of one pass", rising),
        ("greedy_tokens", len(entry.greedy_tokens), n, len(entry.greedy_tokens) == n),
        ("token ids", "a number below 0, or from 2^31 on", "ids", all(0 <= one < 1 << 31 for one in ids)),
        ("context", entry.context, f"{n} or more: a cell for each token", context),
    ]


def _of_blocks(entry: DumpEntry) -> list[Check]:
    block_points = {point.name for point in (*BLOCK_POINTS, *EXPERT_POINTS)}
    points = {"out"} <= set(entry.points) <= block_points and len(set(entry.points)) == len(entry.points)
    kept = ("last_row", "last_logits_only") if entry.last_row and entry.last_logits_only else ()
    layers = f"1 to {MOST_LAYERS}"
    return [
        ("file", quoted(entry.file), "a plain *.safetensors name", _plain(entry.file)),
        ("n_layers", entry.n_layers, layers, 1 <= entry.n_layers <= MOST_LAYERS),
        ("blocks", some(entry.blocks, 8), f"below {entry.n_layers}, ascending", _ascending(entry)),
        ("points", some(entry.points, 8), some(sorted(block_points), 4), points),
        ("what is kept", " and ".join(kept), "one of them at most", not kept),
    ]


def _of_continuation(entry: DumpEntry) -> list[Check]:
    end = entry.continuation
    n, margins = len(end.token_ids), len(end.margins)
    ended = end.ended_by in ENDINGS
    wanted = n + (end.ended_by == "eos")
    # Of a recording without a continuation nothing was chosen, whatever it says of its end.
    return [
        ("continuation: ended_by", quoted(end.ended_by), " or ".join(ENDINGS), ended),
        ("continuation: margins", margins, wanted, margins == wanted),
        ("continuation: text_base64", "no base64", "the bytes of the text", _is_base64(end.text_base64)),
    ]


def _check_sampling(setting: Sampling, n_rows: int, where: str) -> None:
    counted = all(0 <= one < 1 << 31 for one in setting.penalty_tokens)
    wanted: list[Check] = [
        ("row", setting.row, f"0 to {n_rows - 1}", 0 <= setting.row < n_rows),
        ("temperature", setting.temperature, "0 or more", setting.temperature >= 0),
        ("top_k", setting.top_k, "0 or more", 0 <= setting.top_k < 1 << 31),
        ("top_p", setting.top_p, "0 to 1", 0 <= setting.top_p <= 1),
        ("min_p", setting.min_p, "0 to 1", 0 <= setting.min_p <= 1),
        ("repeat_penalty", setting.repeat_penalty, "above 0", setting.repeat_penalty > 0),
        ("penalty_tokens", "a number below 0, or from 2^31 on", "ids", counted),
    ]
    for field, got, right, holds in wanted:
        if not holds:
            raise DumpError(f"{where}: {field}", got=got, wanted=right)


def _check_sha256(where: str, text: str) -> None:
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise DumpError(where, got=quoted(text), wanted="64 digits, 0 to 9 and a to f")


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def _plain(file: str) -> bool:
    name = file.endswith(".safetensors") and file.isprintable() and len(file.encode()) < 256
    return name and file == Path(file).name and "\\" not in file


def _ascending(entry: DumpEntry) -> bool:
    in_range = all(0 <= block < entry.n_layers for block in entry.blocks)
    return in_range and list(entry.blocks) == sorted(set(entry.blocks))
