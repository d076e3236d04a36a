"""Dumps in safetensors: a header that is damaged, or one that is sound before values that nobody computed."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import numpy as np

from tools.fuzz.mutate import changed_bytes, changed_json, json_bytes

__all__ = ["changed_safetensors", "changed_values"]

HOSTILE = (float("nan"), float("inf"), float("-inf"), 3.4e38, -3.4e38, 1e-45, 0.0, -0.0, 1.0, 65_504.0)

KEYS = (
    *("token_ids", "positions", "sequences", "padding", "calls", "slots", "copies", "blocks", "points"),
    *("attention_mask", "dtype", "call.0.embd", "call.1.token_ids", "logits", "last_logits", "blk.0.q"),
)


def changed_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A dump with a damaged header, or with tensors of other names, types and shapes."""
    n = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + n])
    except (ValueError, RecursionError):
        return changed_bytes(data, rng)
    if rng.random() < 0.2:
        return changed_bytes(data, rng)
    if rng.random() < 0.4:
        header = _retyped(header, rng)
    text = json_bytes(changed_json(header, rng, rng.choice((0, 1, 1, 2))), rng)
    return struct.pack("<Q", len(text)) + text + data[8 + n :]


def _retyped(header: object, rng: random.Random) -> object:
    """Tensors of the same bytes with other names, types and shapes: what stays a sound file."""
    if not isinstance(header, dict):
        return header
    names = [name for name, one in header.items() if isinstance(one, dict) and "shape" in one]
    for name in rng.sample(names, min(len(names), rng.choice((1, 2, 5)))):
        shape, what = header[name]["shape"], rng.randrange(4)
        if what == 0 and isinstance(shape, list):
            rng.shuffle(shape)
        elif what == 1 and isinstance(shape, list):
            shape.insert(rng.randrange(len(shape) + 1), 1)
        elif what == 2 and header[name].get("dtype") == "F32":
            header[name]["dtype"] = rng.choice(("I32", "U32"))
        else:
            header[rng.choice((*KEYS, *names))] = header.pop(name)
    said = header.setdefault("__metadata__", {})
    if isinstance(said, dict):
        key = rng.choice(KEYS)
        said[key] = rng.choice(
            ("0", "1,2,3", "0,0,0,0,1", "1," * 2000, "0,1,2,3,4", "-1", "9" * 30, "{}", "[]")
        )
        if rng.random() < 0.2:
            said["arithmetic"] = json.dumps(changed_json({"like": "llama.cpp-cpu", "head": {}}, rng))
    return header


def changed_values(data: bytes, rng: random.Random) -> bytes:
    """Mostly a sound dump of wrong values: zeroed, scaled, exchanged, left out, not numbers."""
    if rng.random() < 0.25:
        return changed_safetensors(data, rng)
    try:
        said, tensors = _tensors(data)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return changed_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 4)) if tensors else 0):
        _change_one(tensors, rng)
    return _file(said, tensors)


def _tensors(data: bytes) -> tuple[Any, dict[str, tuple[Any, bytes]]]:
    """Metadata, and by name each tensor's entry of the header and its bytes."""
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    said = header.pop("__metadata__", {})
    found = {}
    for name, one in header.items():
        begin, end = one["data_offsets"]
        found[name] = (one, data[8 + n + begin : 8 + n + end])
    return said, found


def _file(said: Any, tensors: dict[str, tuple[Any, bytes]]) -> bytes:
    header, at = {"__metadata__": said}, 0
    for name, (one, part) in tensors.items():
        header[name] = {**one, "data_offsets": [at, at + len(part)]}
        at += len(part)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + b"".join(part for _, part in tensors.values())


def _change_one(tensors: dict[str, tuple[Any, bytes]], rng: random.Random) -> None:
    """Change the values of one tensor, or which there are."""
    name, what = rng.choice([*tensors]), rng.randrange(8)
    one, part = tensors[name]
    if what == 0 and len(tensors) > 1:
        del tensors[name]
    elif what == 1:
        alike = [other for other, (_, its) in tensors.items() if len(its) == len(part)]
        other = rng.choice(alike)
        tensors[name], tensors[other] = (one, tensors[other][1]), (tensors[other][0], part)
    else:
        tensors[name] = (one, _changed_floats(part, rng))


def _changed_floats(part: bytes, rng: random.Random) -> bytes:
    """The bytes of a float32 tensor with some values, or all of them, changed."""
    if not part or len(part) % 4:
        return part
    values = np.frombuffer(part, "<f4").copy()
    what = rng.randrange(6)
    if what == 0:
        values[rng.randrange(len(values))] = rng.choice(HOSTILE)
    elif what == 1:
        values[rng.randrange(len(values)) :] = rng.choice(HOSTILE)
    elif what == 2:
        values = np.roll(values, rng.choice((1, -1, 8, len(values) // 2)))
    elif what == 3:
        values = values[::-1].copy()
    elif what == 4:
        values.view(np.uint32)[:: rng.choice((1, 3, 8))] ^= np.uint32(1 << rng.randrange(32))
    else:
        with np.errstate(over="ignore"):
            values *= np.float32(rng.choice((-1.0, 0.5, 2.0, 1.001, 1e30, 0.0)))
    return values.tobytes()
