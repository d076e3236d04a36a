"""A run as a list of calls: the call, sequence and position of each row, and what lay in the cache.

    call      0 0 0 0 0  1 1 1  2          # 5 + 3 tokens, then one that takes the place of the last two
    sequence  0 0 0 0 0  0 0 0  0
    position  0 1 2 3 4  5 6 7  6

Causality goes by position within a sequence, and what a call finds in the cache follows from the rows before
it: a row at a position that is taken already comes in the place of what stands there and of all after it (a
rollback). `copies` says what a sequence has from another. So each sequence has a history: the rows that it
would have as a prompt of its own. What was rolled back is a history, too. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from llama_ckpt.errors import DumpError

__all__ = ["Cached", "Copy", "History", "RunTable", "copies_of"]


@dataclass(frozen=True)
class Copy:
    """Keys and values that a sequence has from another one: its positions from `first` up to before `end`.

    Attributes:
        call: before which call they are copied. source, target: of which sequence, to which.
    """

    call: int
    source: int
    target: int
    first: int
    end: int


@dataclass(frozen=True)
class History:
    """The rows of one sequence, as if they were a prompt of their own.

    Attributes:
        number: the sequence's.
        rows: of the file, in order.
        rolled_back: before which call its last rows were removed; None where it stands to the end.
    """

    number: int
    rows: tuple[int, ...]
    rolled_back: int | None = None


@dataclass(frozen=True)
class Cached:
    """What the cache holds while a call is computed, its own rows included.

    Attributes:
        live: for each sequence its rows, in order.
        gone: for each sequence rows that were removed before, in the order of their coming.
        cells: the rows of all sequences in the order in which they came, a copy as cells of its own.
    """

    live: Mapping[int, tuple[int, ...]]
    gone: Mapping[int, tuple[int, ...]]
    cells: tuple[int, ...]


@dataclass(frozen=True)
class RunTable:
    """A number for each row of a file.

    Attributes:
        calls: ascending. sequences: of a row of padding, the line of the batch that it lies in.
        positions: None where they are not declared: each sequence counts from 0.
        slots: where in the cache a row's key lies; None where it is not declared.
        padding: whether a row is padding.
        path: for messages.
    """

    calls: tuple[int, ...]
    sequences: tuple[int, ...]
    positions: tuple[int, ...] | None
    padding: tuple[bool, ...]
    slots: tuple[int, ...] | None = None
    copies: tuple[Copy, ...] = ()
    path: str = ""
    _of_call: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if list(self.calls) != sorted(self.calls):
            raise DumpError(
                f"{self.path}: calls", got="a call after a later one", wanted="rows in the order of the calls"
            )
        found: dict[int, list[int]] = {}
        for row, call in enumerate(self.calls):
            found.setdefault(call, []).append(row)
        self._of_call.update({call: tuple(rows) for call, rows in found.items()})

    @property
    def numbers(self) -> tuple[int, ...]:
        """The calls, in order."""
        return tuple(self._of_call)

    def rows_of(self, call: int) -> tuple[int, ...]:
        """The rows of a call."""
        return self._of_call.get(call, ())

    @property
    def several(self) -> bool:
        """Whether there is more than one sequence."""
        return len({s for s, out in zip(self.sequences, self.padding, strict=True) if not out}) > 1

    @cached_property
    def cached(self) -> Mapping[int, Cached]:
        """For each call what the cache holds."""
        return self._walked[0]

    @cached_property
    def histories(self) -> tuple[History, ...]:
        """Every sequence, and what was rolled back of one, in the order of their first own rows."""
        return self._walked[1]

    @cached_property
    def _walked(self) -> tuple[dict[int, Cached], tuple[History, ...]]:
        live: dict[int, list[int]] = {}
        gone: dict[int, list[int]] = {}
        cached: dict[int, Cached] = {}
        ended: list[History] = []
        cells: list[int] = []
        for call, rows in self._of_call.items():
            for copy in (one for one in self.copies if one.call == call):
                self._copy(copy, live)
                cells += live[copy.target]
            own = _by_sequence(self, rows)
            for number, new in own.items():
                kept = self._before(live.get(number, []), new)
                removed = live.get(number, [])[len(kept) :]
                if removed:
                    ended.append(History(number, tuple(live[number]), call))
                    gone.setdefault(number, []).extend(removed)
                cells = _without(cells, removed)
                live[number] = kept + new
            cells += [row for row in rows if not self.padding[row]]
            cached[call] = Cached(_frozen(live), _frozen(gone), tuple(cells))
        ended += [History(number, tuple(rows)) for number, rows in live.items()]
        # What was only copied and never gone on with says nothing that its source does not.
        whole = [one for one in ended if any(self.sequences[row] == one.number for row in one.rows)]
        return cached, tuple(sorted(whole, key=lambda one: (one.rows[-1], one.number)) if whole else ())

    def _before(self, there: Sequence[int], new: Sequence[int]) -> list[int]:
        """What stays of a sequence's rows where new ones come: what lies before the first of these."""
        if self.positions is None:
            return list(there)
        first = min(self.positions[row] for row in new)
        return [row for row in there if self.positions[row] < first]

    def _copy(self, copy: Copy, live: dict[int, list[int]]) -> None:
        there = live.get(copy.source, [])
        at = range(len(there)) if self.positions is None else [self.positions[row] for row in there]
        taken = [row for row, p in zip(there, at, strict=True) if copy.first <= p < copy.end]
        if len(taken) != copy.end - copy.first:
            got = f"positions {copy.first} to {copy.end - 1} of sequence {copy.source}"
            raise DumpError(f"{self.path}: copies", got=got, wanted="positions that it has by then")
        own = live.get(copy.target, [])
        before = (
            own[: max(0, copy.first)]
            if self.positions is None
            else [row for row in own if self.positions[row] < copy.first]
        )
        live[copy.target] = before + taken


def _without(cells: Sequence[int], removed: Sequence[int]) -> list[int]:
    out = set(removed)
    return [row for row in cells if row not in out]


def _by_sequence(table: RunTable, rows: Sequence[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for row in rows:
        if not table.padding[row]:
            found.setdefault(table.sequences[row], []).append(row)
    return found


def _frozen(rows: Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
    return {number: tuple(each) for number, each in rows.items()}


def copies_of(numbers: Sequence[int], path: str) -> Iterator[Copy]:
    """Copies as a dump declares them, five whole numbers each."""
    if len(numbers) % 5:
        wanted = "five for each: call, from, to, first position, end"
        raise DumpError(f"{path}: copies", got=f"{len(numbers)} numbers", wanted=wanted)
    return (Copy(*numbers[i : i + 5]) for i in range(0, len(numbers), 5))
