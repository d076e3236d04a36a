"""What a row of a later call may have seen instead of its own keys: what caches and batches get wrong.

Each guess gives every row of a call the keys and the values that it would then have read, as rows of the
file; whoever holds contexts computes which of them it was. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from llama_ckpt.dumps.sequences import SequenceDump

__all__ = ["ZERO", "CallKeys", "Guessed", "guesses"]

ZERO = -1
"""In place of a row: a key, or a value, of zeros."""

WIDEST = 16
"""So wide a window is tried."""

Keys: TypeAlias = list[int]
Seen: TypeAlias = Callable[[int], "tuple[Keys, Keys]"]
"""For a row of the call, by its place there: the rows whose keys it sees, and whose values it is given."""


@dataclass(frozen=True)
class Guessed:
    """A guess: how to say it, what it is called in code, and what each row of the call saw."""

    words: str
    hint: str
    seen: Seen
    of_others: bool = False


@dataclass(frozen=True)
class CallKeys:
    """One call of a sequence, and what its cache held.

    Attributes:
        part: the sequence. call: which. n_keys: how many keys its scores had; None where that is not known.
    """

    part: SequenceDump
    call: int
    n_keys: int | None = None

    @cached_property
    def own(self) -> Keys:
        """Its rows."""
        return self.part.own_rows(self.call)

    @cached_property
    def before(self) -> Keys:
        """The rows of the sequence that came before the call."""
        return [row for row in self.part.rows[: self.part.rows.index(self.own[0])] if row not in self.own]

    @cached_property
    def gone(self) -> Keys:
        """What was removed of the sequence before the call."""
        return list(self.part.table.cached[self.call].gone.get(self.sequence, ()))

    @cached_property
    def gone_now(self) -> Keys:
        """What the call itself takes the place of."""
        before = [call for call in self.part.table.numbers if call < self.call]
        if not before:
            return []
        was = self.part.table.cached[before[-1]].gone.get(self.sequence, ())
        return self.gone[len(was) :]

    @property
    def sequence(self) -> int:
        """Its number."""
        return self.part.table.sequences[self.own[0]]

    @cached_property
    def copied(self) -> Keys:
        """Those of its rows that it has from another sequence."""
        return [row for row in self.before if self.part.table.sequences[row] != self.part.number]

    def until(self, row: int) -> Keys:
        """Every row of the file up to this one."""
        return list(range(row + 1))

    def line(self, row: int) -> Keys:
        """The rows of its line of a batch, padding too, up to this one."""
        sequences = self.part.table.sequences
        alone = {s for s, out in zip(sequences, self.part.table.padding, strict=True) if out}
        mine = {self.sequence} | ({s for s in alone if s < 0} if self.sequence not in alone else set())
        return [one for one in range(row + 1) if sequences[one] in mine and one not in self.gone]

    def not_later(self, rows: Keys, place: int) -> Keys:
        """Those of some rows that stand at no later position than a row of the call."""
        at = self.part.table.positions
        return rows if at is None else [row for row in rows if at[row] <= at[self.own[place]]]

    def right(self, place: int) -> Keys:
        """What a row should see."""
        return self.before + self.own[: place + 1]

    def others(self) -> Iterator[tuple[int, Keys]]:
        """What the cache held of other sequences before the call."""
        for number, rows in self.part.table.cached[self.call].live.items():
            if number != self.sequence:
                yield number, [row for row in rows if self.part.table.calls[row] < self.call]


def _same(keys: Callable[[int], Keys]) -> Seen:
    return lambda place: (keys(place), keys(place))


def _after(at: CallKeys, earlier: Keys, values: Keys | None = None) -> Seen:
    """Rows that see these keys (and are given these values) and those of their call up to themselves."""

    def seen(place: int) -> tuple[Keys, Keys]:
        own = at.own[: place + 1]
        return earlier + own, (earlier if values is None else values) + own

    return seen


def guesses(at: CallKeys) -> Iterator[Guessed]:
    """The guesses, the likeliest first."""
    yield from _copies(at)
    yield from _short(at)
    yield from _masks(at)
    yield from _removed(at)
    yield from _batches(at)


def _short(at: CallKeys) -> Iterator[Guessed]:
    before, own, gone = at.before, at.own, at.gone_now
    if before:
        hint = "append the new keys before attending, and count them"
        words = "the cache is one key short: {rows} not see {its} own key"
        yield Guessed(words, hint, _same(lambda i: before + own[:i]))
        words = "the cache is one key short: the last key before the call is not seen"
        if gone:
            words = "one token too many is removed from the cache: the last key before the call is not seen"
        yield Guessed(
            words,
            "count the keys that the cache holds",
            _same(lambda i: (before + own[: i + 1])[: len(before) - 1] + own[: i + 1]),
        )
        words = "the first key of the cache is not seen"
        yield Guessed(words, "begin to read the cache at its first slot", _same(lambda i: at.right(i)[1:]))
    yield from _shifted(at)
    if len(own) > 1 or before:
        words = "the causal mask is aligned to the top left: the call's first row sees the first key only"
        hint = "shift the mask's diagonal by the number of keys in the cache"
        yield Guessed(words, hint, _same(lambda i: (before + own)[: i + 1]))
    if before:
        words = "no key of an earlier call is seen: the cache is reset"
        if gone:
            words += f", where {_the_last(len(gone))} should have been removed"
        yield Guessed(words, "keep what the cache holds", _same(lambda i: own[: i + 1]))


def _shifted(at: CallKeys) -> Iterator[Guessed]:
    """New keys that are written beside their place, or twice, and windows."""
    before, own = at.before, at.own
    if not before:
        return
    late, stale = [ZERO, *own], [before[-1], *own]
    words = "new keys and values are written one slot late: the first free one stays empty"
    yield Guessed(words, "write at the number of keys before", _same(lambda i: before + late[: i + 1]))
    hint = "append what this call computed"
    for which in ("keys", "values", "keys and values"):
        words = f"the {which} that are appended are those of the row before: one call late"
        yield Guessed(words, hint, _appended(at, stale, which))
    words = "a row's own key is seen twice: it is appended twice"
    yield Guessed(words, "append once", _same(lambda i: [*at.right(i), own[i]]))
    for width in range(2, min(len(before) + len(own), WIDEST)):
        words = f"the last {width} keys of the cache are seen, and none before them"
        yield Guessed(words, "keep all keys", _same(_window(at, width)))


def _window(at: CallKeys, width: int) -> Callable[[int], Keys]:
    return lambda place: at.right(place)[-width:]


def _in_place(at: CallKeys, theirs: Keys) -> Callable[[int], Keys]:
    return lambda place: at.not_later(theirs, place)


def _appended(at: CallKeys, stale: Keys, which: str) -> Seen:
    def seen(place: int) -> tuple[Keys, Keys]:
        right, other = at.right(place), at.before + stale[: place + 1]
        return (other if "keys" in which else right), (other if "values" in which else right)

    return seen


def _the_last(n: int) -> str:
    return "the last token" if n == 1 else f"the last {n} tokens"


def _masks(at: CallKeys) -> Iterator[Guessed]:
    if len(at.own) > 1 and at.before:
        words = "every row of the call has the mask of its first row"
        yield Guessed(words, "give each row its own mask", _same(lambda i: at.before + at.own[:1]))
    if len(at.own) > 1:
        words = "rows see later rows of their call: there is no causal mask"
        yield Guessed(words, "mask what is later", _same(lambda i: at.before + at.own))
    empty = (at.n_keys or 0) - len(at.before) - len(at.own)
    if empty > 0:
        words = f"rows see the cache's {empty} empty slots"
        hint = "mask the slots that hold nothing yet"
        yield Guessed(words, hint, _same(lambda i: at.right(i) + [ZERO] * empty), True)


def _removed(at: CallKeys) -> Iterator[Guessed]:
    gone, now = at.gone, at.gone_now
    if not gone:
        return
    hint = "remove it from the cache, or mask it"
    if not at.before:
        words = f"the last prompt is left in the cache: its {len(gone)} tokens are seen"
    else:
        words = f"tokens that were removed are still in the cache, and seen: {len(gone)}"
    yield Guessed(words, hint, _same(lambda i: at.before + gone + at.own[: i + 1]), True)
    yield Guessed(words, hint, _same(lambda i: at.before + at.not_later(gone, i) + at.own[: i + 1]), True)
    for kept in range(1, len(now)):
        words = f"{len(now) - kept} tokens were removed from the cache in place of {len(now)}"
        yield Guessed(words, hint, _after(at, at.before + now[:kept]), True)
    words = "the keys that were removed are read in place of the new ones: these are not written over them"
    stale = (now or gone) + at.own[len(now or gone) :]
    yield Guessed(
        words,
        "write new keys into the slots of those removed",
        _same(lambda i: at.before + stale[: i + 1]),
        True,
    )
    words = "the {} that were removed are read in place of the new ones, the others are new"

    def stale_keys(place: int) -> tuple[Keys, Keys]:
        return at.before + stale[: place + 1], at.right(place)

    def stale_values(place: int) -> tuple[Keys, Keys]:
        return at.right(place), at.before + stale[: place + 1]

    yield Guessed(words.format("keys"), "roll back keys too", stale_keys, True)
    yield Guessed(words.format("values"), "roll back values too", stale_values, True)


def _batches(at: CallKeys) -> Iterator[Guessed]:
    table = at.part.table
    if any(table.padding):
        words = "rows see the padding of their line: it is not masked"
        hint = "mask the keys of padding"
        yield Guessed(words, hint, _same(lambda i: at.line(at.own[i])), True)
    if not table.several and not any(table.padding):
        return
    hint = "mask what is not of a row's own sequence"
    words = "rows see every row before them, also those of padding and of other sequences"
    if not any(table.padding):
        words = "rows see every row before them, whichever sequence it is of"
    yield Guessed(words, hint, _same(lambda i: at.until(at.own[i])), True)
    live = sorted(row for rows in table.cached[at.call].live.values() for row in rows)
    words = "rows see the keys of every sequence in the cache"
    yield Guessed(words, hint, _same(lambda i: [r for r in live if r <= at.own[i]]), True)
    positions = table.positions
    if positions is not None:
        at_or_before = lambda i: [r for r in live if positions[r] <= positions[at.own[i]]]  # noqa: E731
        yield Guessed(f"{words} up to their own position", hint, _same(at_or_before), True)
    for number, rows in at.others():
        words = f"rows read the cache of sequence {number} in place of their own"
        yield Guessed(words, hint, _after(at, rows), True)
        theirs = rows + [row for row in table.rows_of(at.call) if table.sequences[row] == number]
        words = f"rows see sequence {number} in place of their own, its rows of this call too"
        yield Guessed(words, hint, _same(_in_place(at, theirs)), True)


def _copies(at: CallKeys) -> Iterator[Guessed]:
    for copy in at.part.table.copies:
        if copy.source == at.sequence and copy.call <= at.call:
            left = at.before[copy.end :]
            words = f"the prefix was moved to sequence {copy.target}, not copied: its source does not see it"
            yield Guessed(words, "leave the source what it has", _after(at, left))
    copied = at.copied
    if not copied:
        return
    later = [row for row in at.before if row not in copied]
    n = len(copied)
    for short in range(1, n + 1):
        words = f"{n - short} tokens of the prefix were copied in place of {n}"
        if short == n:
            words = "the prefix was not copied: no key of it is seen"
        yield Guessed(words, "copy the whole prefix", _after(at, copied[: n - short] + later))
        if short < n:
            words = f"the prefix is copied without its first tokens: {short}"
            yield Guessed(words, "copy the whole prefix", _after(at, copied[short:] + later))
    zeros, whole = [ZERO] * n + later, copied + later
    for which, keys, values in (
        ("keys and values", zeros, zeros),
        ("keys", zeros, whole),
        ("values", whole, zeros),
    ):
        words = f"the prefix's {which} were not copied: they are zeros"
        yield Guessed(words, "copy keys and values", _after(at, keys, values))
    for number, rows in at.others():
        if len(rows) >= n and rows[:n] != copied:
            words = f"the prefix was copied from sequence {number}"
            yield Guessed(words, "copy from the right one", _after(at, rows[:n] + later), True)
        source = at.part.table.sequences[copied[0]]
        if number == source and len(rows) > n:
            words = f"all {len(rows)} tokens of sequence {number} were copied in place of {n}"
            yield Guessed(words, "copy the prefix only", _after(at, rows + later), True)
