"""Writing a safetensors file one tensor after another, so that no more than one is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.whole_files import appears_when_whole

__all__ = ["plain", "write_tensors"]

KINDS = {"float32": "F32", "float64": "F64"}

ENTRY = 200
"""Bytes of the header that one tensor takes at most, beside its name."""


def write_tensors(
    path: Path,
    names: Iterable[str],
    tensor: Callable[[str], NDArray[Any] | None],
    metadata: Mapping[str, str],
) -> list[str]:
    """Write a file of float32 and float64 tensors.

    Args:
        path: of the file, which appears when it is whole; where there is no tensor, none is written.
        names: of the tensors, in their order. tensor: gives one, or None where there is none after all.
        metadata: for the header.

    Returns:
        The names of those that were written.
    """
    asked = list(names)
    said = {"__metadata__": dict(metadata)}
    # The header stands first and is known last: room is left for it, and blanks in it are allowed.
    room = len(json.dumps([said, asked])) + ENTRY * len(asked)
    room += -room % 8
    header, end = dict[str, Any](), 0
    with suppress(_NothingError), appears_when_whole(path) as partial, partial.open("wb") as file:
        file.write(room.to_bytes(8, "little") + b" " * room)
        for name in asked:
            given = tensor(name)
            if given is None:
                continue
            array = plain(given)
            start, end = end, end + array.nbytes
            shape = list(array.shape)
            header[name] = {"dtype": KINDS[array.dtype.name], "shape": shape, "data_offsets": [start, end]}
            array.tofile(file)
        if not header:
            raise _NothingError
        file.seek(8)
        file.write(json.dumps(said | header).encode())
    return list(header)


class _NothingError(Exception):
    """There was no tensor after all, so that no file is to appear."""


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """As a file has it: in one piece, float64 where it was that, else float32."""
    kind = np.float64 if array.dtype == np.float64 else np.float32
    return np.ascontiguousarray(array, np.dtype(kind).newbyteorder("<"))
