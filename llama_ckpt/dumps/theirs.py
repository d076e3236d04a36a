"""A dump that somebody's program wrote: safetensors under the neutral names, some of them or all.

    theirs = open_their_dump("theirs.safetensors")
    theirs.names                     # the points it holds, by their full neutral names
    theirs.read("blk.0.q", sizes)    # one tensor, read when it is asked for

What a program may say of its run stands in the file's `__metadata__`, all of it optional; what is absent
is stated and cannot be checked: `token_ids` and `positions` (whole numbers with commas), `sequences` and
`padding` (of each row which sequence it belongs to, and 1 where it is padding), `weights_sha256`, `dtype`
(what was computed in), `arithmetic` (what is rounded on purpose: a profile's name, or JSON), `points` and
`blocks` (what was recorded on purpose), `producer`, `notes` (what the reader of a report should know). Where
there are several calls: `calls`, `slots` and `copies`, see `calls.py`; their tensors lie one after the other,
or each by itself (`call.3.blk.0.q`). What has a number for each row may also be an integer tensor of that
name. numpy and safetensors only.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open

from llama_ckpt.bus_errors import say_on_bus_errors
from llama_ckpt.dumps.names_map import DumpMap, Rule
from llama_ckpt.dumps.run_facts import CALL, RunFacts, run_facts
from llama_ckpt.dumps.stored_points import FLOATS, LAST, stored_points
from llama_ckpt.dumps.writing import write_tensors
from llama_ckpt.errors import DumpError, OptionError
from llama_ckpt.outside import check_file, json_value, quoted
from llama_ckpt.plain_text import shortened
from llama_ckpt.points import ALL_POINTS
from llama_ckpt.precisions import DTYPES

__all__ = ["Declared", "TheirDump", "open_their_dump", "save_dump"]

CACHE = re.compile(r"(?:call\.(?P<call>[0-9]{1,9})\.)?blk\.(?P<block>[0-9]{1,9})\.(?P<which>[kv])_cache")
"""How the slots of a cache are called, which are no points."""


MOST_AXES, LONGEST_AXIS = 8, 1 << 40
"""Of a tensor; no point has more than three."""

WHOLE = re.compile("[+-]?[0-9]{1,18}")
"""A whole number in the metadata: no more digits than 64 bits hold, and no other script's."""


@dataclass(frozen=True)
class Declared:
    """What a dump says of the run that it came from; None where it says nothing.

    Attributes:
        token_ids, positions: one of each for each row.
        sequences: which sequence each row belongs to, by any number; None: all to one.
        padding: 1 for each row that is padding, 0 for the others; None: none is.
        weights_sha256: as `gguf_file.weights_sha256` computes it, or copied from a manifest.
        dtype: "float32", "float16" or "bfloat16": what was computed in.
        points: neutral names without a block's number; blocks: numbers of blocks. Together they say
            what was recorded on purpose, so that nothing else counts as missing.
        producer, notes: for reports.
        arithmetic: what is rounded on purpose: a profile's name, or lines as JSON has them.
        calls: the call that each row belongs to, ascending; None: all to one.
        slots: where in the cache each row's key lies, the column of scores that is its own.
        copies: what a sequence has of another's cache, five numbers each: before which call, from which
            sequence, to which, the first position, and the one behind the last.
    """

    token_ids: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    weights_sha256: str | None = None
    dtype: str | None = None
    points: tuple[str, ...] | None = None
    blocks: tuple[int, ...] | None = None
    producer: str | None = None
    notes: str | None = None
    sequences: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None
    arithmetic: Any = None
    calls: tuple[int, ...] | None = None
    slots: tuple[int, ...] | None = None
    copies: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TheirDump:
    """An open dump of somebody's.

    Attributes:
        path: the file.
        declared: what it says of itself.
        stored: for each point their name of it and how it lies in the file.
        unknown: their names that are no points.
        file: the open safetensors file.
        by_call: for each point its calls and their names of it, where each call has tensors of its own; in
            `stored` is the first.
        batch: how many sequences lie side by side in a batch, where the tokens are given so.
        changed: when the file was written last, nanoseconds; a dump that changes while it is read is refused.
    """

    path: Path
    declared: Declared
    stored: Mapping[str, tuple[str, Rule]]
    unknown: tuple[str, ...]
    file: Any = field(repr=False)
    by_call: Mapping[str, tuple[tuple[int, str], ...]] = field(default_factory=dict, repr=False)
    batch: int | None = None
    changed: int = field(default=0, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The full neutral names of the points that it holds."""
        return tuple(self.stored)

    def shape(self, point: str) -> tuple[int, ...]:
        """The shape of a point as it is written in the file."""
        return tuple(self.file.get_slice(self.stored[point][0]).get_shape())

    def dtype(self, point: str) -> str:
        """The type of a point's elements, as numpy calls it; also "bfloat16"."""
        return FLOATS[self.file.get_slice(self.stored[point][0]).get_dtype()]

    def raw(self, point: str) -> NDArray[Any]:
        """A point as it lies in the file: its own shape, float64 or float32 (which holds half precision)."""
        return self.piece(self.stored[point][0])

    def piece(self, name: str) -> NDArray[Any]:
        """A tensor by their own name of it."""
        kind = FLOATS[self.file.get_slice(name).get_dtype()]
        array = self._from_file(name, np.dtype("<u2" if kind == "bfloat16" else kind).newbyteorder("<"))
        if kind == "bfloat16":  # numpy has none: its bits are the upper half of a float32's
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float64 if kind == "float64" else np.float32, copy=False)

    def _from_file(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A tensor's numbers; read, not mapped: what was looked at of a mapped file counts as memory."""
        start, (first, last) = self._offsets[0], self._offsets[1][name]
        n = (last - first) // dtype.itemsize
        array: NDArray[Any] = np.fromfile(self.path, dtype, n, offset=start + first)
        if array.size != n:
            raise self._has_changed()
        self._check_unchanged()
        return array.reshape(self.file.get_slice(name).get_shape())

    def read(self, point: str, sizes: Mapping[str, int]) -> NDArray[Any]:
        """A point with the axes that `points.py` gives it, as far as the map says how.

        Args:
            point: its full neutral name.
            sizes: how long each axis is, by its name.
        """
        return self.stored[point][1].apply(self.raw(point), sizes)

    def _check_unchanged(self) -> None:
        """That nobody has written to the file since it was opened."""
        if not self.path.is_file() or self.path.stat().st_mtime_ns != self.changed:
            raise self._has_changed()

    def _has_changed(self) -> DumpError:
        return DumpError(f"{self.path} has changed since it was opened", hint="compare it again")

    @cached_property
    def most_rows(self) -> int:
        """The most rows that any point of the file may have, whichever axis they are, all calls together."""
        rows: dict[str, int] = {}
        for name in self._offsets[1]:
            shape, match = self.file.get_slice(name).get_shape(), CALL.fullmatch(name)
            key = match[2] if match else name
            most = max((math.prod(shape[i : i + 2]) for i in range(len(shape))), default=0)
            rows[key] = rows.get(key, 0) + most
        return max(rows.values(), default=0)

    @cached_property
    def _offsets(self) -> tuple[int, dict[str, tuple[int, int]]]:
        """Where the data begin, and where in them each tensor is; safetensors has checked the header."""
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length)
        self._check_unchanged()  # or these would be another dump's tensors
        header = json.loads(text)
        return 8 + length, {k: tuple(v["data_offsets"]) for k, v in header.items() if k != "__metadata__"}


def open_their_dump(path: str | os.PathLike[str], names: DumpMap | None = None) -> TheirDump:
    """Open somebody's dump; reads its header, not yet the tensors.

    Args:
        path: a safetensors file.
        names: how their names, axes and layouts read; None takes the neutral ones.

    Raises:
        DumpError: not a safetensors file, no tensor that is a point, a point stored in a type that is
            no float, metadata that cannot be read, or two tensors that are the same point.
    """
    where = Path(path)
    say_on_bus_errors(where, check_file(where, DumpError, "the safetensors file that your program wrote"))
    try:
        changed = where.stat().st_mtime_ns
        file: Any = safe_open(where, framework="numpy")
        keys = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise DumpError(
            f"{where} is not readable",
            got=shortened(str(error), 120),
            wanted="a safetensors file of tensors",
            hint="docs/diagnosis.md says how to write one",
        ) from None
    _check_shapes(where, file, keys)
    facts = run_facts(where, file, keys)
    found = stored_points(where, file, [key for key in keys if key not in facts.names], names or DumpMap())
    return TheirDump(
        where,
        _declared(where, file.metadata() or {}, facts),
        found.stored,
        tuple(name for name in found.unknown if not CACHE.fullmatch(name)),
        file,
        found.by_call,
        facts.batch,
        changed,
    )


def _check_shapes(path: Path, file: Any, keys: Sequence[str]) -> None:
    """Axes as arrays have them: an empty tensor may claim any number of them, of any length."""
    for key in keys:
        shape = file.get_slice(key).get_shape()
        if len(shape) > MOST_AXES or max(shape, default=0) > LONGEST_AXIS:
            what, got = f"{path}: the shape of {key}", f"{len(shape)} axes, the longest {max(shape)}"
            raise DumpError(what, got=got, wanted=f"{MOST_AXES} axes at most, none above {LONGEST_AXIS}")


def _declared(path: Path, metadata: Mapping[str, str], facts: RunFacts) -> Declared:
    """What the metadata say; a tensor of that name counts where both are there."""
    tensors = facts.numbers

    def whole(key: str) -> tuple[int, ...] | None:
        if key in tensors or key not in metadata:
            return tensors.get(key)
        parts = re.split(r"[\s,]+", metadata[key].strip("[]() \n"))
        if not all(WHOLE.fullmatch(part) for part in parts if part):
            raise DumpError(
                f"{path}: {key} in __metadata__",
                got=quoted(metadata[key], 40),
                wanted="whole numbers with commas, 1,15043",
            )
        return tuple(int(part) for part in parts if part)

    points = re.findall(r"\w+", metadata["points"]) if "points" in metadata else None
    points = points and ["logits" if point == LAST else point for point in points]
    for point in points or ():
        if point not in ALL_POINTS:
            raise DumpError(
                f"{path}: points in __metadata__", got=shortened(point, 40), wanted="names as in points.py"
            )
    dtype = metadata.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise DumpError(f"{path}: dtype in __metadata__", got=quoted(dtype), wanted=" or ".join(DTYPES))
    arithmetic: Any = metadata.get("arithmetic", "").strip() or None
    if arithmetic is not None and arithmetic.startswith("{"):
        what, wanted = f"{path}: arithmetic in __metadata__", "a profile's name, or an object"
        arithmetic = json_value(arithmetic, what, DumpError, wanted)
    return Declared(
        token_ids=whole("token_ids"),
        positions=whole("positions"),
        weights_sha256=metadata.get("weights_sha256", "").strip().lower() or None,
        dtype=dtype,
        points=None if points is None else tuple(points),
        blocks=whole("blocks"),
        producer=metadata.get("producer"),
        notes=metadata.get("notes"),
        sequences=whole("sequences"),
        padding=whole("padding"),
        arithmetic=arithmetic,
        calls=whole("calls"),
        slots=whole("slots"),
        copies=whole("copies"),
    )


def save_dump(
    path: str | os.PathLike[str],
    tensors: Mapping[str, ArrayLike],
    *,
    token_ids: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    weights_sha256: str | None = None,
    dtype: str | None = None,
    points: Sequence[str] | None = None,
    blocks: Sequence[int] | None = None,
    producer: str | None = None,
    notes: str | None = None,
    sequences: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    arithmetic: Any = None,
    calls: Sequence[int] | None = None,
    slots: Sequence[int] | None = None,
    copies: Sequence[int] | None = None,
) -> None:
    """Write a dump that `open_their_dump` reads; any other writer of safetensors does as well.

    Args:
        path: the file to write.
        tensors: by full neutral name, row-major, token first; written as float32 (float64 as it is).
        token_ids, positions, sequences, padding, calls, slots, copies, weights_sha256, dtype, points, blocks,
            producer, notes, arithmetic: as in `Declared`.

    Raises:
        OptionError: no tensors.
    """
    if not tensors:
        raise OptionError("tensors", got="none", wanted="at least one")
    facts = {"weights_sha256": weights_sha256, "dtype": dtype, "producer": producer, "notes": notes}
    metadata = {key: value for key, value in facts.items() if value is not None}
    if arithmetic is not None:
        metadata["arithmetic"] = arithmetic if isinstance(arithmetic, str) else json.dumps(arithmetic)
    if points is not None:
        metadata["points"] = ",".join(points)
    rows = {"token_ids": token_ids, "positions": positions, "sequences": sequences, "padding": padding}
    rows |= {"calls": calls, "slots": slots, "copies": copies, "blocks": blocks}
    for key, numbers in rows.items():
        if numbers is not None:
            metadata[key] = ",".join(str(int(number)) for number in numbers)
    # Numbers of eight bytes first, so that each lies at a multiple of its size.
    wide = {name: np.asarray(tensor).dtype == np.float64 for name, tensor in tensors.items()}
    in_order = sorted(wide, key=lambda name: not wide[name])
    write_tensors(Path(path), in_order, lambda name: np.asarray(tensors[name]), metadata)
