"""What programs with caches and batches get wrong, each on the port: a plan of calls, and what must be found.

Each was met in published code or reports; `CATALOGUE` says the call in which it begins, the first point that
is off, and a word of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.comparing.cached_port import CachedPort, Cell, Remove, Share, Step
from tests.comparing.ported_llama import Array, prompt

__all__ = ["CATALOGUE", "PLANS", "Fault"]

P = prompt(16)

PLANS: dict[str, list[Step | Remove | Share]] = {
    "chunks": [Step.of(P[:5]), Step.of(P[5:8])],
    "decode": [Step.of(P[:5]), *(Step.of([token]) for token in P[5:8])],
    "one by one": [Step.of([token]) for token in P[:5]],
    "batch": [
        Step(((0, P[0]), (1, P[0]), (0, P[3]), (1, P[4]), (1, P[5]))),
        Step(((0, P[6]), (1, P[7]))),
        Step(((1, P[9]), (0, P[8]))),
    ],
    "rollback": [Step.of(P[:5]), Step.of(P[5:8]), Remove(0, 5), Step.of(P[8:10]), Step.of([P[10]])],
    "rollback of a step": [Step.of(P[:5]), Step.of([P[5]]), Remove(0, 5), Step.of([P[8]]), Step.of([P[9]])],
    "two prompts": [Step.of(P[:5]), Remove(0, 0), Step.of([1, *P[8:10]]), Step.of([P[10]])],
    "prefix": [
        Step.of(P[:5]),
        Share(0, 1, 4),
        Step(((1, P[7]), (0, P[6]), (1, P[8]))),
        Step(((0, P[9]), (1, P[10]))),
    ],
    "prefixes": [Step.of(P[:5]), Step.of([1, *P[10:14]], 2), Share(0, 1, 4), Step.of(P[7:9], 1)],
}


@dataclass(frozen=True)
class Fault:
    """A wrong program.

    Attributes:
        program: the port with it. plan: its calls. call: in which it begins. point: the first that is off, in
            block 0 if it is a block's. named: what must be said.
    """

    name: str
    program: Callable[[Path], CachedPort]
    plan: str
    call: int
    point: str
    named: str
    sequence: int = 0


class OneKeyShort(CachedPort):
    def attended(self, cells: list[Cell], new: int) -> list[Cell]:
        return cells[:-1] if new == 1 and len(cells) > 1 else cells


class LastKeyBefore(CachedPort):
    def attended(self, cells: list[Cell], new: int) -> list[Cell]:
        return cells[: -new - 1] + cells[-new:] if len(cells) > new else cells


class FirstKeyLost(CachedPort):
    def attended(self, cells: list[Cell], new: int) -> list[Cell]:
        return cells[1:] if len(cells) > new else cells


class NextOfCall(CachedPort):
    """Behind a cache the mask is off by one."""

    def visible(self, sequences: Array, positions: Array, cells: list[Cell]) -> Array:
        return super().visible(sequences, positions + (positions.min() > 0), cells)


class WrittenOver(CachedPort):
    """The second key and its value lie in the first one's cell as well."""

    def attended(self, cells: list[Cell], new: int) -> list[Cell]:
        copied = Cell(cells[0].sequences, cells[0].position, cells[1].keys, cells[1].values)
        return [copied, *cells[1:]]


class TopLeft(CachedPort):
    def visible(self, sequences: Array, positions: Array, cells: list[Cell]) -> Array:
        return np.tri(len(positions), len(cells), dtype=bool)


class NothingRemoved(CachedPort):
    def remove(self, sequence: int, first: int) -> None:
        pass


class Reset(CachedPort):
    def remove(self, sequence: int, first: int) -> None:
        super().remove(sequence, 0)


class OneTooFew(CachedPort):
    def remove(self, sequence: int, first: int) -> None:
        super().remove(sequence, first + 1)


class OneTooMany(CachedPort):
    def remove(self, sequence: int, first: int) -> None:
        super().remove(sequence, first - 1)


class StaleKeys(CachedPort):
    """What was removed is read on: the new rows are not written over it."""

    parts = ("keys", "values")

    def remove(self, sequence: int, first: int) -> None:
        self.stale = [cell for cell in self.cells if cell.position >= first]
        super().remove(sequence, first)

    def appended(self, block: int, cells: list[Cell], keys: Array, values: Array) -> None:
        super().appended(block, cells, keys, values)
        for cell in cells:
            for old in getattr(self, "stale", []):
                if old.position == cell.position:
                    for part in self.parts:
                        getattr(cell, part)[block] = getattr(old, part)[block]


class StaleValues(StaleKeys):
    parts = ("values",)


class OffsetJumps(CachedPort):
    def turned_at(self, positions: Array, first: Array) -> Array:
        return positions + 1 if len(positions) == 1 and first[0] else positions


class ChunkBeginsAgain(CachedPort):
    def turned_at(self, positions: Array, first: Array) -> Array:
        return positions - first


class OffsetNotRolledBack(CachedPort):
    def remove(self, sequence: int, first: int) -> None:
        self.ahead = self.lengths[sequence] - first
        super().remove(sequence, first)

    def turned_at(self, positions: Array, first: Array) -> Array:
        return positions + getattr(self, "ahead", 0)


class BlindToSequences(CachedPort):
    def visible(self, sequences: Array, positions: Array, cells: list[Cell]) -> Array:
        return np.tri(len(positions), len(cells), len(cells) - len(positions), dtype=bool)


class BlindByPosition(CachedPort):
    def visible(self, sequences: Array, positions: Array, cells: list[Cell]) -> Array:
        return np.array([cell.position for cell in cells]) <= positions[:, None]


class OthersCache(CachedPort):
    """A step of the batch reads the other sequence's cache."""

    def visible(self, sequences: Array, positions: Array, cells: list[Cell]) -> Array:
        right = super().visible(sequences, positions, cells)
        n = len(positions)
        if len(cells) > 5:
            old = super().visible(1 - sequences, np.full(n, 99), cells)[:, :-n]
            right[:, :-n] = old
        return right


class NoMask(CachedPort):
    def visible(self, sequences: Array, positions: Array, cells: list[Cell]) -> Array:
        return super().visible(sequences, np.full(len(positions), 99), cells)


class PrefixShort(CachedPort):
    def share(self, source: int, target: int, end: int) -> None:
        super().share(source, target, end - 1)


class PrefixMissing(CachedPort):
    def share(self, source: int, target: int, end: int) -> None:
        pass


class PrefixLong(CachedPort):
    def share(self, source: int, target: int, end: int) -> None:
        super().share(source, target, end + 1)

    def visible(self, sequences: Array, positions: Array, cells: list[Cell]) -> Array:
        right = super().visible(sequences, positions, cells)
        right[sequences == 1, :5] = True
        return right


class PrefixOfAnother(CachedPort):
    def share(self, source: int, target: int, end: int) -> None:
        super().share(2, target, end)


class ValuesNotCopied(CachedPort):
    """Each sequence has slots of its own, and those of the copy hold keys and no values."""

    lost = ("values",)

    def share(self, source: int, target: int, end: int) -> None:
        for cell in [one for one in self.cells if source in one.sequences and one.position < end]:
            made = {
                part: [0 * x if part in self.lost else x for x in getattr(cell, part)]
                for part in ("keys", "values")
            }
            self.cells.append(Cell({target}, cell.position, **made))


class PrefixOfZeros(ValuesNotCopied):
    lost = ("keys", "values")


class DecodeWithoutScale(CachedPort):
    def probabilities(self, scores: Array, visible: Array) -> Array:
        if len(scores) == 1:
            scores = scores * np.float32(self.config.head_dim**0.5)
        return super().probabilities(scores, visible)


class DecodeTilesHeads(CachedPort):
    def repeated(self, x: Array) -> Array:
        if len(self._call[1]) == 1:
            return np.tile(x, (1, self.config.n_heads // self.config.n_kv_heads, 1))
        return super().repeated(x)


CATALOGUE: Sequence[Fault] = (
    Fault("one key short", OneKeyShort, "decode", 1, "attn_scores", "one key short"),
    Fault("one key short, one by one", OneKeyShort, "one by one", 1, "attn_scores", "one key short"),
    Fault("last key before the call", LastKeyBefore, "chunks", 1, "attn_scores", "one key short"),
    Fault("first key lost", FirstKeyLost, "decode", 1, "attn_scores", "first key"),
    Fault("top left, chunks", TopLeft, "chunks", 1, "attn_probs", "top left"),
    Fault("top left, steps", TopLeft, "decode", 1, "attn_probs", "top left"),
    Fault("sees the next in a later call", NextOfCall, "chunks", 1, "attn_probs", "off by 1 from token 5 on"),
    Fault("a key written over", WrittenOver, "chunks", 0, "attn_scores", "key 0 is that of token 1"),
    Fault("last prompt left", NothingRemoved, "two prompts", 1, "attn_probs", "last prompt is left"),
    Fault("draft left", NothingRemoved, "rollback", 2, "attn_probs", "still in the cache"),
    Fault("reset", Reset, "rollback", 2, "attn_scores", "the cache is reset"),
    Fault("reset at a step", Reset, "rollback of a step", 2, "attn_scores", "reset"),
    Fault("one too few removed", OneTooFew, "rollback", 2, "attn_probs", "in place of 3"),
    Fault("one too many removed", OneTooMany, "rollback", 2, "attn_scores", "one token too many"),
    Fault("stale keys and values", StaleKeys, "rollback", 2, "attn_scores", "not written over"),
    Fault("stale values", StaleValues, "rollback", 2, "attn_context", "the values that were removed"),
    Fault("offset jumps", OffsetJumps, "decode", 1, "q_rope", "positions"),
    Fault("chunk begins again", ChunkBeginsAgain, "chunks", 1, "q_rope", "position"),
    Fault("offset not rolled back", OffsetNotRolledBack, "rollback", 2, "q_rope", "position"),
    Fault("blind to sequences", BlindToSequences, "batch", 0, "attn_probs", "whichever sequence", 1),
    Fault("blind by position", BlindByPosition, "batch", 0, "attn_probs", "every sequence", 0),
    Fault("other's cache", OthersCache, "batch", 1, "attn_probs", "cache of sequence 1", 0),
    Fault("no mask", NoMask, "chunks", 0, "attn_probs", "no causal mask"),
    Fault("prefix short", PrefixShort, "prefix", 1, "attn_probs", "3 tokens of the prefix", 1),
    Fault("prefix missing", PrefixMissing, "prefix", 1, "attn_probs", "prefix was not copied", 1),
    Fault("prefix long", PrefixLong, "prefix", 1, "attn_probs", "in place of 4", 1),
    Fault("prefix of another", PrefixOfAnother, "prefixes", 2, "attn_probs", "from sequence 2", 1),
    Fault("values not copied", ValuesNotCopied, "prefix", 1, "attn_context", "values were not copied", 1),
    Fault("prefix of zeros", PrefixOfZeros, "prefix", 1, "attn_scores", "they are zeros", 1),
    Fault("decode without scale", DecodeWithoutScale, "decode", 1, "attn_probs", "scale"),
    Fault("decode tiles heads", DecodeTilesHeads, "decode", 1, "attn_scores", "head"),
)
