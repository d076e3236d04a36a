"""Writing what all ranks make together as one dump, a tensor in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_ckpt.ranks.pieces import Array, Pieces

__all__ = ["write_whole"]

KINDS = {"float32": "F32", "float64": "F64"}


def write_whole(path: Path, pieces: Pieces, seen_from: int, metadata: Mapping[str, str]) -> list[str]:
    """Write the dump of the whole model as one rank sees it.

    Args:
        path: a new file. pieces: of all ranks. seen_from: the rank.
        metadata: what the dump is to declare.

    Returns:
        The names of the points that came together; where there are none, there is no file.
    """
    data, header, end = path.with_suffix(".data"), dict[str, Any](), 0
    with data.open("wb") as file:
        for name in pieces.names:
            whole = pieces.whole(name, seen_from)
            if whole is None:
                continue
            array = _plain(whole)
            start, end = end, end + array.nbytes
            header[name] = {
                "dtype": KINDS[array.dtype.name],
                "shape": list(array.shape),
                "data_offsets": [start, end],
            }
            file.write(array.tobytes())
    if header:
        _join(path, data, {"__metadata__": dict(metadata), **header})
    data.unlink()
    return list(header)


def _plain(whole: Array) -> Array:
    """Sums of parts stay in float64, so that putting them together rounds nothing."""
    kind = np.float64 if whole.dtype == np.float64 else np.float32
    return np.ascontiguousarray(whole, np.dtype(kind).newbyteorder("<"))


def _join(path: Path, data: Path, header: Mapping[str, Any]) -> None:
    text = json.dumps(header).encode()
    text += b" " * (math.ceil(len(text) / 8) * 8 - len(text))
    with path.open("wb") as out, data.open("rb") as file:
        out.write(len(text).to_bytes(8, "little") + text)
        while part := file.read(1 << 24):
            out.write(part)
