"""A dump whose rows are those of several sequences, or padding: each sequence as a dump of its own.

A row sees the rows of its own sequence that are not later, and no padding. So each sequence is what it would
be alone, and is judged as that; what a row of padding holds counts nowhere. What a row gives to keys that it
should not see is all that is left to look at: `seen_of_others`. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.theirs import Declared, TheirDump
from llama_ckpt.errors import DumpError
from llama_ckpt.points import POINTS, split_name

__all__ = ["Leak", "SequenceDump", "seen_of_others", "sequences_of"]

BY_ROW = ("token_ids", "positions", "sequences", "padding")


@dataclass(frozen=True)
class SequenceDump(TheirDump):
    """The rows of one sequence.

    Attributes:
        number: the sequence, as the dump numbers it.
        rows: which rows of the file are its own, in order; n_rows: how many there are in all.
        whole: what the dump declares of all rows.
    """

    number: int = 0
    rows: tuple[int, ...] = ()
    n_rows: int = 0
    whole: Declared = Declared()

    @property
    def padding_before(self) -> int:
        """How many rows of padding stand before its first, where nothing else does."""
        before = (self.whole.padding or ())[: self.rows[0]]
        return len(before) if all(before) else 0

    def raw(self, point: str) -> NDArray[Any]:
        """Its rows of a point as it lies in the file; of scores and probabilities its keys."""
        x, rule = super().raw(point), self.stored[point][1]
        if "ne" in rule.layout:
            x = x.reshape(x.shape[::-1])
        for axis in self._axes_of_rows(x, point):
            x = x.take(self.rows, axis)
        return x.reshape(x.shape[::-1]) if "ne" in rule.layout else x

    def shape(self, point: str) -> tuple[int, ...]:
        """The shape of what `raw` gives."""
        return self.raw(point).shape

    def _axes_of_rows(self, x: NDArray[Any], point: str) -> list[int]:
        """Where a token or a key is counted, each as long as there are rows."""
        axes, rule = POINTS[split_name(point)[1]].axes, self.stored[point][1]
        named = rule.axes or tuple((axis,) for axis in (*("1",) * (x.ndim > len(axes)), *axes))
        return [
            place
            for place, group in enumerate(named)
            if group in (("token",), ("key",)) and place < x.ndim and x.shape[place] == self.n_rows
        ]


def sequences_of(theirs: TheirDump) -> list[SequenceDump]:
    """The sequences of a dump; none where it declares neither sequences nor padding, and is one whole.

    Raises:
        DumpError: not one number for each row, or nothing but padding.
    """
    declared = theirs.declared
    if declared.sequences is None and declared.padding is None:
        return []
    given = {key: numbers for key in BY_ROW if (numbers := getattr(declared, key)) is not None}
    n = len(next(iter(given.values())))
    for key, numbers in given.items():
        if len(numbers) != n:
            got = f"{len(numbers)} {key} and {n} {next(iter(given))}"
            raise DumpError(f"{theirs.path}: __metadata__", got=got, wanted="one of each for each row")
    padding = np.asarray(declared.padding or [0] * n, bool)
    numbers = np.asarray(declared.sequences or [0] * n)
    if padding.all():
        raise DumpError(f"{theirs.path}: padding", got="every row", wanted="a row that is none")
    found = []
    for number in dict.fromkeys(numbers[~padding].tolist()):
        found.append(_one(theirs, number, tuple(np.flatnonzero((numbers == number) & ~padding).tolist()), n))
    return found


def _one(theirs: TheirDump, number: int, rows: tuple[int, ...], n: int) -> SequenceDump:
    declared = theirs.declared

    def own(numbers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if numbers is None else tuple(numbers[row] for row in rows)

    alone = replace(
        declared,
        token_ids=own(declared.token_ids),
        positions=own(declared.positions),
        sequences=None,
        padding=None,
    )
    stored = dict(theirs.stored)
    # The last row's logits alone are those of the sequence that ends there.
    if rows[-1] != n - 1 and "logits" in stored and n not in theirs.shape("logits"):
        del stored["logits"]
    facts = {field.name: getattr(theirs, field.name) for field in fields(TheirDump)}
    facts |= {"stored": stored, "declared": alone}
    return SequenceDump(**facts, number=number, rows=rows, n_rows=n, whole=declared)


@dataclass(frozen=True)
class Leak:
    """A probability that a row gives to a key that it should not see.

    Attributes:
        name: the point. row, key: of the file. head, value: where, and how much.
        to_padding: whether the key is padding.
    """

    name: str
    row: int
    head: int
    key: int
    value: float
    to_padding: bool


def seen_of_others(theirs: TheirDump) -> Iterator[Leak]:
    """The largest probability of each block and sequence that goes out of the sequence, where one does."""
    declared, parts = theirs.declared, sequences_of(theirs)
    for name in theirs.names:
        if split_name(name)[1] != "attn_probs":
            continue
        x, n = theirs.raw(name), parts[0].n_rows
        x = x.reshape(x.shape[1:]) if x.ndim == 4 and len(x) == 1 else x
        if x.ndim != 3 or x.shape[0] != n or x.shape[2] < n:
            continue
        for part in parts:
            others = np.setdiff1d(np.arange(n), part.rows)
            given = np.abs(x[list(part.rows)][..., others])
            if not (given > 0).any():
                continue
            row, head, key = (int(i) for i in np.unravel_index(int(np.nanargmax(given)), given.shape))
            row, key = part.rows[row], int(others[key])
            padding = declared.padding is not None and declared.padding[key] == 1
            yield Leak(name, row, head, key, float(x[row, head, key]), padding)
