"""A rank's run of several calls, each with tensors of its own, as one file with all rows in each tensor.

Where a point is cut is then seen as of a single pass, and the calls stay in the numbers of its rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.call_tensors import has_keys, piece_of
from llama_ckpt.dumps.calls import RunTable
from llama_ckpt.dumps.run_facts import RUN
from llama_ckpt.dumps.run_table import run_table
from llama_ckpt.dumps.theirs import TheirDump, open_their_dump
from llama_ckpt.dumps.writing import write_tensors

__all__ = ["in_one"]

SAID = ("weights_sha256", "dtype", "producer", "notes")


def in_one(theirs: TheirDump, folder: Path) -> TheirDump:
    """The dump as it is, or where calls have tensors of their own one in the folder with all rows in each."""
    table = run_table(theirs) if theirs.by_call else None
    if table is None:
        return theirs
    declared = theirs.declared
    metadata = {key: value for key in SAID if (value := getattr(declared, key)) is not None}
    rows = {key: getattr(declared, key) for key in RUN} | {"calls": table.calls}
    metadata |= {key: ",".join(map(str, each)) for key, each in rows.items() if each is not None}
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    write_tensors(path, theirs.names, lambda name: _joined(theirs, table, name), metadata)
    return open_their_dump(path)


def _joined(theirs: TheirDump, table: RunTable, name: str) -> NDArray[np.floating] | None:
    """All calls' rows of a point; fewer keys than another call's end in zeros."""
    pieces = [piece_of(theirs, name, table, call) for call in table.numbers]
    found = [piece.x for piece in pieces if piece is not None]
    if len(found) < len(pieces):
        return None  # of some calls alone: no whole
    if has_keys(name):
        n = max(len(table.calls), *(x.shape[-1] for x in found))
        found = [np.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, n - x.shape[-1])]) for x in found]
    return np.concatenate(found)
