"""Which tensors of somebody's file are which points, of one call or of several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_ckpt.dumps.names_map import DumpMap, Rule
from llama_ckpt.dumps.run_facts import CALL
from llama_ckpt.errors import DumpError
from llama_ckpt.listing import some
from llama_ckpt.points import ALL_BLOCK_POINTS, MODEL_POINTS, split_name

__all__ = ["FLOATS", "LAST", "StoredPoints", "in_order", "stored_points"]

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The element types that a point may be stored in, as safetensors and as numpy call them."""

LAST = "last_logits"
"""The last token's row of the logits: taken for these where they are not there."""

_ORDER = {point.name: place for place, point in enumerate((*ALL_BLOCK_POINTS, *MODEL_POINTS))}


@dataclass
class StoredPoints:
    """The points of a file; attributes as of `TheirDump`."""

    stored: dict[str, tuple[str, Rule]] = field(default_factory=dict)
    by_call: dict[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def stored_points(path: Path, file: Any, keys: Sequence[str], names: DumpMap) -> StoredPoints:
    """Sort the tensors of a file.

    Raises:
        DumpError: none is a point, one is stored in a type that is no float, or two are the same point.
    """
    made = StoredPoints()
    for key, call, point, rule in _named(file, keys, names, made.unknown):
        others = dict(made.by_call.get(point, ()))
        if point in made.stored and (call is None or call in others or not others):
            got = f"{others.get(-1 if call is None else call, made.stored[point][0])} and {key}"
            raise DumpError(f"{path}: {point}", got=got, wanted="one tensor")
        kind = file.get_slice(key).get_dtype()
        if kind not in FLOATS:
            raise DumpError(f"{path}: the type of {key}", got=kind, wanted="one of " + ", ".join(FLOATS))
        made.stored.setdefault(point, (key, rule))
        if call is not None:
            made.by_call[point] = tuple(sorted([*made.by_call.get(point, ()), (call, key)]))
    if not made.stored:
        few = some(keys, 4)
        raise DumpError(
            f"{path}: names of tensors",
            got=few or "none at all",
            wanted="neutral names, such as blk.0.attn_norm or logits",
            hint="say what is what with --map FILE",
        )
    made.stored = {name: made.stored[name] for name in in_order(made.stored)}
    return made


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Full names of points in the order in which data flows through them."""
    return tuple(sorted(names, key=_place))


def _named(
    file: Any, keys: Sequence[str], names: DumpMap, unknown: list[str]
) -> Iterator[tuple[str, int | None, str, Rule]]:
    """Each tensor that is a point: their name of it, the call, the point, and how it lies there."""
    whole: set[int | None] = set()
    rows: list[tuple[str, int | None]] = []
    for key in keys:
        match = CALL.fullmatch(key)
        call, name = (int(match.group(1)), match.group(2)) if match else (None, key)
        found = names.find(name)
        if found is not None:
            whole |= {call} if found[0] == "logits" else set()
            yield key, call, *found
        elif name == LAST and file.get_slice(key).get_dtype() in FLOATS:
            rows.append((key, call))
        else:
            unknown.append(key)
    for key, call in rows:
        if call in whole:
            unknown.append(key)
        else:
            yield key, call, "logits", Rule(LAST, "logits")


def _place(name: str) -> tuple[float, int]:
    """Sorts points in the order in which data flows through them."""
    number, point = split_name(name)
    outside = -1.0 if point == "embd" else math.inf
    return outside if number is None else float(number), _ORDER[point]
