"""From what a dump declares of its rows, and from how its tensors lie, to one table of them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from llama_ckpt.dumps.calls import RunTable, copies_of
from llama_ckpt.dumps.run_facts import lines
from llama_ckpt.dumps.theirs import TheirDump
from llama_ckpt.errors import DumpError
from llama_ckpt.points import ALL_POINTS, split_name

__all__ = ["run_table"]

BY_ROW = ("token_ids", "positions", "sequences", "padding", "calls", "slots")


MOST_STEPS = 1 << 24
"""Rows times calls and copies; 4,000 tokens decoded one by one."""


def run_table(theirs: TheirDump) -> RunTable | None:
    """The table of a dump's rows; None of one that says nothing of sequences, calls and padding.

    Raises:
        DumpError: not one number for each row, or nothing but padding.
    """
    declared = theirs.declared
    told = ("sequences", "padding", "calls", "slots", "copies")
    if not theirs.by_call and theirs.batch is None and all(getattr(declared, key) is None for key in told):
        return None
    calls = declared.calls if declared.calls is not None or not theirs.by_call else _counted(theirs)
    given = {key: numbers for key in BY_ROW if (numbers := getattr(declared, key)) is not None}
    if calls is not None:
        given["calls"] = calls
    if not given:
        raise DumpError(f"{theirs.path}: __metadata__", got="no numbers of rows", wanted="token_ids")
    n = len(next(iter(given.values())))
    for key, numbers in given.items():
        if len(numbers) != n:
            got = f"{len(numbers)} {key} and {n} {next(iter(given))}"
            raise DumpError(f"{theirs.path}: __metadata__", got=got, wanted="one of each for each row")
    _check_work(theirs, n, calls)
    padding = np.asarray(declared.padding or [0] * n, bool)
    if padding.all():
        raise DumpError(f"{theirs.path}: padding", got="every row", wanted="a row that is none")
    return RunTable(
        calls=calls or (0,) * n,
        sequences=declared.sequences or lines(n, theirs.batch, calls) or (0,) * n,
        positions=declared.positions,
        padding=tuple(padding.tolist()),
        slots=declared.slots,
        copies=tuple(copies_of(declared.copies or (), str(theirs.path))),
        path=str(theirs.path),
    )


def _check_work(theirs: TheirDump, n: int, calls: tuple[int, ...] | None) -> None:
    """What lies in the cache is noted for each call: the rows times the calls and copies have a bound."""
    if n > theirs.most_rows:
        what, wanted = f"{theirs.path}: __metadata__", f"{theirs.most_rows} at most, as the tensors have"
        raise DumpError(what, got=f"{n} rows", wanted=wanted)
    steps = len(set(calls or ())) + len(theirs.declared.copies or ()) // 5
    if n * steps > MOST_STEPS:
        got = f"{steps} calls and copies of {n} rows"
        raise DumpError(f"{theirs.path}: calls", got=got, wanted=f"{MOST_STEPS:,} together at most")


def _counted(theirs: TheirDump) -> tuple[int, ...]:
    """The call of each row, by how many rows its tensors have."""
    sizes: dict[int, Counter[int]] = {}
    for point, names in theirs.by_call.items():
        n_axes = len(ALL_POINTS[split_name(point)[1]].axes)
        for call, name in names:
            shape = theirs.file.get_slice(name).get_shape()
            rows = shape[0] * shape[1] if len(shape) > n_axes else shape[0]
            sizes.setdefault(call, Counter())[rows] += 1
    most = {call: counter.most_common(1)[0][0] for call, counter in sorted(sizes.items())}
    return tuple(call for call, n in most.items() for _ in range(n))
