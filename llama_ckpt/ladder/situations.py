"""How layers are called in real runs, beside one prompt in one call: the list, and the calls that it makes.

A situation is a number of rows, where they stand, the calls that they come in, with a cache or without, and
the sequences that they belong to. What a layer should give is what the oracle gives for all rows at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.ladder.odd_model import Tried
from llama_ckpt.points import Case
from llama_ckpt.weights.kv_cache import KVCache

__all__ = ["BY_ROW", "QUICK", "THOROUGH", "Call", "Situation", "Stretch", "calls_of", "placed"]

SPARE = 7
"""Free slots behind a cache's last token: what is in them must not count."""


@dataclass(frozen=True)
class Stretch:
    """Some calls one after the other, without a token that is taken out.

    Attributes:
        rows: of all calls, those that the cache holds at its end. calls: which these are.
        gone: the rows that were taken out before it. kept: how many stayed.
    """

    rows: tuple[int, ...]
    calls: tuple[int, ...]
    gone: tuple[int, ...] = ()
    kept: int = 0


@dataclass(frozen=True)
class Situation:
    """One way of calling layers.

    Attributes:
        label: for reports; begins the name of the recording.
        rows: of all calls. first: the position of the first row.
        calls: how many rows each takes, with a cache; empty: one call without.
        sequences: how many take turns in the rows.
        shape: of the model.
        removed: how many of the cache's last tokens are taken out before each call; empty: none ever.
        placed: the position of each row, and the sequence, where they are not as the above says.
    """

    label: str
    rows: int
    first: int = 0
    calls: tuple[int, ...] = ()
    sequences: int = 1
    shape: str = "heads of 20"
    removed: tuple[int, ...] = ()
    placed: tuple[tuple[int, int], ...] = ()

    @property
    def context(self) -> int:
        """How many positions a model must have."""
        return self.first + -(-self.rows // self.sequences)

    @property
    def room(self) -> int:
        """Slots of each sequence in the cache."""
        return -(-self.rows // self.sequences) + SPARE

    @property
    def needs(self) -> tuple[str, ...]:
        """The arguments that a layer must take to be called so."""
        return (*(("cache",) if self.calls else ()), *(("sequence_ids",) if self.sequences > 1 else ()))

    @property
    def positions(self) -> NDArray[np.int64]:
        """`[rows]`, counted in each sequence."""
        if self.placed:
            return np.array([position for position, _ in self.placed], np.int64)
        if not any(self.removed):
            return self.first + np.arange(self.rows, dtype=np.int64) // self.sequences
        made: list[int] = []
        for n, gone in zip(self.calls, self.removed, strict=True):
            start = (made[-1] + 1 if made else self.first) - gone
            made += range(start, start + n)
        return np.array(made, np.int64)

    @property
    def sequence_ids(self) -> NDArray[np.int64] | None:
        """`[rows]`; None for one sequence."""
        if self.sequences == 1:
            return None
        if self.placed:
            return np.array([sequence for _, sequence in self.placed], np.int64)
        return np.arange(self.rows, dtype=np.int64) % self.sequences

    @property
    def stretches(self) -> list[Stretch]:
        """The calls between one removal of tokens and the next."""
        sizes = self.calls or (self.rows,)
        made, live, start = [Stretch((), ())], list[int](), 0
        for number, n in enumerate(sizes):
            gone = self.removed[number] if self.removed else 0
            if gone:
                made.append(Stretch((), (), tuple(live[-gone:]), len(live) - gone))
                live = live[:-gone]
            live += range(start, start + n)
            start += n
            made[-1] = replace(made[-1], rows=tuple(live), calls=(*made[-1].calls, number))
        return made


QUICK = (
    Situation("1 row", 1),
    Situation("129 rows", 129),
    Situation("33 rows from position 4,001", 33, first=4001),
    Situation("two sequences in one call", 33, sequences=2),
    Situation("a cache, calls of 20, 12 and 1", 33, calls=(20, 12, 1)),
    Situation("a cache for two sequences, calls of 21, 8 and 4", 33, calls=(21, 8, 4), sequences=2),
    Situation("a cache, the last 5 of 20 tokens taken back", 33, calls=(20, 1, 12), removed=(0, 5, 0)),
)
"""What every climb tries."""


def _of_shape(shape: str) -> Iterator[Situation]:
    for rows in (1, 2, 31, 33, 129, 300):
        yield Situation(f"{shape}, {rows} rows", rows, shape=shape)
    yield Situation(f"{shape}, 31 rows from position 30,001", 31, first=30001, shape=shape)
    yield Situation(f"{shape}, three sequences in one call", 129, sequences=3, shape=shape)
    for calls in ((1,) * 9, (2, 31), (129, 129, 42), (1, 33, 1, 1)):
        said = "one by one" if set(calls) == {1} else f"calls of {', '.join(map(str, calls))}"
        yield Situation(f"{shape}, a cache, {said}", sum(calls), calls=calls, shape=shape)
    label = f"{shape}, a cache, tokens taken back twice"
    yield Situation(label, 60, calls=(33, 20, 1, 6), removed=(0, 2, 0, 9), shape=shape)
    label = f"{shape}, a cache for three sequences from position 700"
    yield Situation(label, 133, first=700, calls=(129, 1, 3), sequences=3, shape=shape)


THOROUGH = (
    *QUICK,
    *(one for shape in ("heads of 20", "three heads", "heads of 6") for one in _of_shape(shape)),
)
"""What `--thorough` tries."""

BY_ROW = frozenset({"x", "q", "k", "v", "positions", "token_ids"})
"""Arguments that have a row for each token."""


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes:
        case: with the call's own rows.
        rows: which of all rows they are.
    """

    case: Case
    rows: slice


def calls_of(situation: Situation, case: Case, odd: Tried) -> Iterator[Call]:
    """The calls of a layer that a situation makes of one case with all rows.

    Args:
        case: as the checkpoint makes it for one sequence, with torch tensors.
    """
    arguments = placed(situation, case.arguments, torch.from_numpy, odd.device)
    if not situation.calls:
        yield Call(Case(case.function, arguments, case.returns, case.taps), slice(None))
        return
    cache = _cache(situation, odd)
    start = 0
    for number, n in enumerate(situation.calls):
        if situation.removed and situation.removed[number]:
            if cache.layer(0).own is not None:
                return  # whether one of the layer's own takes tokens back was never asked of it
            cache.remove(int(situation.positions[start]))
        rows, start = slice(start, start + n), start + n
        own = {
            key: value[rows] if key in (*BY_ROW, "sequence_ids") else value
            for key, value in arguments.items()
        }
        own["cache"] = cache
        if case.function != "logits":  # which reserves by itself
            cache.reserve(own["positions"], own.get("sequence_ids"))
            own["cache"] = cache.layer(0)
        yield Call(Case(case.function, own, case.returns, case.taps), rows)


def placed(
    situation: Situation, arguments: Mapping[str, Any], make: Any, device: str | None
) -> dict[str, Any]:
    """A case's arguments with the situation's positions and sequences, where its function takes them."""
    if "positions" not in arguments:
        return dict(arguments)
    placed = {"positions": situation.positions}
    if situation.sequence_ids is not None:
        placed["sequence_ids"] = situation.sequence_ids
    made = {key: make(value) for key, value in placed.items()}
    return {**arguments, **(made if device is None else {k: v.to(device) for k, v in made.items()})}


def _cache(situation: Situation, odd: Tried) -> KVCache:
    """An empty cache with some room to spare."""
    room = situation.room
    return KVCache.allocate(
        odd.config, room, n_sequences=situation.sequences, device=odd.device, dtype=odd.dtype
    )
