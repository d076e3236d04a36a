"""A dump whose rows are those of several sequences, calls, or padding: each sequence as a dump of its own.

A row sees the rows of its own sequence that are not later, and no padding, whichever call they came in: a
cache changes nothing of what is right. So each sequence is what it would be alone and in one pass, and is
judged as that; what a row of padding holds counts nowhere. What a row gives to keys that it should not see is
all that is left to look at: `seen_of_others`. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.call_tensors import Laid, has_keys, local, piece_of
from llama_ckpt.dumps.calls import History, RunTable
from llama_ckpt.dumps.column_keys import KeyColumns
from llama_ckpt.dumps.key_columns import NOTHING
from llama_ckpt.dumps.run_table import run_table
from llama_ckpt.dumps.theirs import Declared, TheirDump
from llama_ckpt.errors import DumpError
from llama_ckpt.listing import some
from llama_ckpt.points import split_name

__all__ = ["Leak", "SequenceDump", "seen_of_others", "sequences_of"]


@dataclass(frozen=True)
class SequenceDump(TheirDump):
    """The rows of one sequence.

    Attributes:
        number: the sequence, as the dump numbers it.
        rows: which rows of the file are its own, in order; n_rows: how many there are in all.
        whole: what the dump declares of all rows.
        table: call, sequence and position of each row of the file.
        history: what of the sequence this is.
    """

    number: int = 0
    rows: tuple[int, ...] = ()
    n_rows: int = 0
    whole: Declared = Declared()
    table: RunTable = field(default_factory=lambda: RunTable((), (), None, ()))
    history: History = History(0, ())

    @property
    def padding_before(self) -> int:
        """How many rows of padding stand before its first, where nothing else does."""
        padding, first = self.table.padding, self.rows[0]
        before = [row for row in self.table.rows_of(self.table.calls[first]) if row < first]
        if {self.table.sequences[row] for row in before if padding[row]} == {self.number}:
            before = [row for row in before if self.table.sequences[row] == self.number]  # its own line
        return len(before) if all(padding[row] for row in before) else 0

    def raw(self, point: str) -> NDArray[Any]:
        """Its rows of a point as it lies in the file; of scores and probabilities its keys."""
        pieces = {call: self.piece_in(point, call) for call in self.calls}
        if any(piece is None for piece in pieces.values()):
            if not self.by_call.get(point):
                return super().raw(point)  # whoever compares shapes says so
            call = next(call for call, piece in pieces.items() if piece is None)
            wanted = f"{len(self.table.rows_of(call))} rows, one for each token of the call"
            raise DumpError(f"{self.path}: call.{call}.{point}", got="other rows", wanted=wanted)
        laid = {call: piece for call, piece in pieces.items() if piece is not None}
        first = next(iter(laid.values()))
        return first.back(self._with_keys(point, laid) if first.key is not None else self._rows(laid))

    @property
    def calls(self) -> tuple[int, ...]:
        """The calls that its rows came in."""
        return tuple(dict.fromkeys(self.table.calls[row] for row in self.rows))

    def shape(self, point: str) -> tuple[int, ...]:
        """The shape of what `raw` gives."""
        return self.raw(point).shape

    def piece_in(self, point: str, call: int) -> Laid | None:
        """A call's tensor, of all its rows."""
        return piece_of(self, point, self.table, call)

    def own_rows(self, call: int) -> list[int]:
        """Its rows of a call."""
        return [row for row in self.rows if self.table.calls[row] == call]

    def columns(self, point: str, call: int, sequence: int, n_keys: int) -> tuple[int, ...]:
        """The row of the file whose key each column of a call's scores or probabilities is."""
        block = split_name(point)[0] or 0
        return self.key_columns.of(block, call, sequence, n_keys)

    @cached_property
    def key_columns(self) -> KeyColumns:
        """Which column is whose, of every call."""
        return KeyColumns(self, self.table)

    def _rows(self, pieces: dict[int, Laid]) -> NDArray[Any]:
        parts = [
            piece.x[local(self.own_rows(call), self.table.rows_of(call))] for call, piece in pieces.items()
        ]
        return self._in_order(self._joined(parts))

    def _joined(self, parts: list[NDArray[Any]]) -> NDArray[Any]:
        """The calls' rows, one after the other; each call's have the same axes."""
        kinds = {part.shape[1:] for part in parts}
        if len(kinds) > 1:
            got = some(sorted(str(list(kind)) for kind in kinds), 2)
            raise DumpError(
                f"{self.path}: a point's rows in its calls", got=got, wanted="the same axes in all"
            )
        return np.concatenate(parts)

    def _with_keys(self, point: str, pieces: dict[int, Laid]) -> NDArray[Any]:
        """Scores or probabilities with a column for each row of the sequence; 0 where a call had none."""
        parts, is_probs = [], split_name(point)[1] == "attn_probs"
        for call, piece in pieces.items():
            own, of_call = self.own_rows(call), self.table.rows_of(call)
            made = np.zeros((len(own), *piece.x.shape[1:-1], len(self.rows)), piece.x.dtype)
            for i, row in enumerate(own):
                columns = self.columns(point, call, self.table.sequences[row], piece.x.shape[-1])
                own_place = {key: j for j, key in enumerate(self.rows)}
                for column, key in enumerate(columns):
                    if key in own_place:
                        given = piece.x[of_call.index(row)][..., column]
                        # A copied key has two columns: what a row gives to it is what it gives to both.
                        more = made[i][..., own_place[key]] if is_probs else 0
                        made[i][..., own_place[key]] = given + more
            parts.append(made)
        return self._in_order(self._joined(parts))

    def _in_order(self, x: NDArray[Any]) -> NDArray[Any]:
        """From call after call to the order of its own rows, which is the same but for what was copied."""
        came = [row for call in self.calls for row in self.own_rows(call)]
        return x if came == list(self.rows) else x[local(self.rows, came)]


def sequences_of(theirs: TheirDump) -> list[SequenceDump]:
    """The sequences of a dump; none where it declares neither sequences, calls nor padding: it is one whole.

    Raises:
        DumpError: not one number for each row, or nothing but padding.
    """
    table = run_table(theirs)
    return [] if table is None else [_one(theirs, table, history) for history in table.histories]


def _one(theirs: TheirDump, table: RunTable, history: History) -> SequenceDump:
    declared, rows = theirs.declared, history.rows

    def own(numbers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if numbers is None else tuple(numbers[row] for row in rows)

    nothing: dict[str, Any] = dict.fromkeys(("sequences", "padding", "calls", "slots", "copies"))
    alone = replace(declared, token_ids=own(declared.token_ids), positions=own(declared.positions), **nothing)
    facts = {field.name: getattr(theirs, field.name) for field in fields(TheirDump)}
    facts |= {"stored": dict(theirs.stored), "declared": alone}
    made = SequenceDump(
        **facts,
        number=history.number,
        rows=rows,
        n_rows=len(table.calls),
        whole=declared,
        table=table,
        history=history,
    )
    for point in list(made.stored):
        calls = {call for call, _ in theirs.by_call.get(point, ())}
        # The last row's logits alone are those of the sequence that ends there.
        if calls and not set(made.calls) <= calls or point == "logits" and not _has_its_logits(theirs, made):
            del made.stored[point]  # type: ignore[attr-defined]
    return made


def _has_its_logits(theirs: TheirDump, made: SequenceDump) -> bool:
    if all(made.piece_in("logits", call) is not None for call in made.calls):
        return True
    whole = not theirs.by_call.get("logits") and made.n_rows in theirs.shape("logits")
    return whole or (made.rows[-1] == made.n_rows - 1 and not theirs.by_call.get("logits"))


@dataclass(frozen=True)
class Leak:
    """A probability that a row gives to a key that it should not see.

    Attributes:
        name: the point. row: of the file; head, column, value: where, and how much.
        key: the row of the file whose key it is; None where it is no row's.
        to: what the key is: "padding", "another sequence", "removed" or "no row".
        part: the sequence that the row is of.
    """

    name: str
    row: int
    head: int
    column: int
    value: float
    key: int | None
    to: str
    part: SequenceDump


def seen_of_others(parts: list[SequenceDump]) -> Iterator[Leak]:
    """The largest probability of each block and sequence that goes out of the sequence, where one does."""
    names = [name for name in parts[0].names if split_name(name)[1] == "attn_probs"] if parts else []
    for name in names:
        for part in parts:
            found = [leak for call in part.calls for leak in _leaks(part, name, call)]
            if found:
                yield max(found, key=lambda leak: leak.value if np.isfinite(leak.value) else np.inf)


def _leaks(part: SequenceDump, name: str, call: int) -> Iterator[Leak]:
    piece = part.piece_in(name, call) if name in part.stored and has_keys(name) else None
    if piece is None or piece.x.ndim < 3:
        return
    of_call = part.table.rows_of(call)
    x = piece.x.reshape(len(of_call), -1, piece.x.shape[-1])
    for row in part.own_rows(call):
        columns = part.columns(name, call, part.table.sequences[row], x.shape[-1])
        others = [column for column, key in enumerate(columns) if key not in part.rows]
        if len(columns) < x.shape[-1]:
            others += range(len(columns), x.shape[-1])
        given = np.abs(x[of_call.index(row)][:, others])
        if not others or not (given > 0).any():
            continue
        head, place = (int(i) for i in np.unravel_index(int(np.nanargmax(given)), given.shape))
        column = others[place]
        key = columns[column] if column < len(columns) and columns[column] != NOTHING else None
        value = float(x[of_call.index(row), head, column])
        yield Leak(name, row, head, column, value, key, _kind(part, key), part)


def _kind(part: SequenceDump, key: int | None) -> str:
    if key is None:
        return "no row"
    if part.table.padding[key]:
        return "padding"
    return "another sequence" if part.table.sequences[key] != part.number else "removed"
