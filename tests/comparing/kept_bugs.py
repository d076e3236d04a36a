"""What lies wrongly in a cache: the right rows' keys and values are read, and are not what they were.

Like `cache_bugs`, each on the port; none of these was in a report that was at hand, all are easily written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tests.comparing.cache_bugs import Fault
from tests.comparing.cached_port import CachedPort, Cell
from tests.comparing.ported_llama import Array

__all__ = ["KEPT"]


class TurnedAgain(CachedPort):
    """Each call turns the cache's keys once more."""

    def attention(self, x: Array, weights: object, positions: Array, at: str) -> Array:
        block = int(at.split(".")[1])
        for cell in self.cells[: -len(x)]:
            cell.keys[block] = self.turn(cell.keys[block][None], np.array([cell.position]))[0]
        return super().attention(x, weights, positions, at)


class BeforeRope(CachedPort):
    """Keys are kept before RoPE, and read as they lie."""

    def attention(self, x: Array, weights: object, positions: Array, at: str) -> Array:
        made = super().attention(x, weights, positions, at)
        for cell, key in zip(self.cells[-len(x) :], self.seen[at + "k"], strict=True):
            cell.keys[int(at.split(".")[1])] = key
        return made


class BlockBefore(CachedPort):
    """A step of block 1 reads block 0's cache."""

    def attention(self, x: Array, weights: object, positions: Array, at: str) -> Array:
        if at == "blk.1." and len(x) == 1:
            for cell in self.cells[:-1]:
                cell.keys[1], cell.values[1] = cell.keys[0], cell.values[0]
        return super().attention(x, weights, positions, at)


class Read(CachedPort):
    """Of the cells of earlier calls other keys and values are read."""

    def other(self, keys: list[Array], values: list[Array]) -> tuple[list[Array], list[Array]]:
        return keys, values

    def attended(self, cells: list[Cell], new: int) -> list[Cell]:
        old = [Cell(one.sequences, one.position, *self.other(one.keys, one.values)) for one in cells[:-new]]
        return old + cells[-new:]


class ScaledTwice(Read):
    def other(self, keys: list[Array], values: list[Array]) -> tuple[list[Array], list[Array]]:
        return [key * np.float32(self.config.head_dim**-0.5) for key in keys], values


class HeadsReversed(Read):
    def other(self, keys: list[Array], values: list[Array]) -> tuple[list[Array], list[Array]]:
        return [key[::-1] for key in keys], [value[::-1] for value in values]


class SlotLate(CachedPort):
    """New keys are written behind an empty slot, and read without it."""

    def attended(self, cells: list[Cell], new: int) -> list[Cell]:
        if len(cells) == new:
            return cells
        empty = replace(
            cells[-new], keys=[0 * x for x in cells[0].keys], values=[0 * x for x in cells[0].values]
        )
        late = [empty, *cells[-new:-1]]
        moved = [replace(a, keys=b.keys, values=b.values) for a, b in zip(cells[-new:], late, strict=True)]
        return cells[:-new] + moved


class Ring(CachedPort):
    """Six slots: the seventh token takes the first one's."""

    def attended(self, cells: list[Cell], new: int) -> list[Cell]:
        return cells[-6:]


class AppendedTwice(CachedPort):
    def attended(self, cells: list[Cell], new: int) -> list[Cell]:
        return cells + cells[-1:] if new == 1 and len(cells) > 1 else cells


class StepBefore(CachedPort):
    """A step appends what the step before computed."""

    parts = (False, True)

    def appended(self, block: int, cells: list[Cell], keys: Array, values: Array) -> None:
        if len(keys) == 1 and len(self.cells) > 1:
            last = self.cells[-2]
            keys = last.keys[block][None] if self.parts[0] else keys
            values = last.values[block][None] if self.parts[1] else values
        super().appended(block, cells, keys, values)


class KeyOfTheStepBefore(StepBefore):
    parts = (True, False)


class KeysAsValues(CachedPort):
    def appended(self, block: int, cells: list[Cell], keys: Array, values: Array) -> None:
        kept = (values, keys) if len(keys) == 1 else (keys, values)
        super().appended(block, cells, *kept)


class FirstRowsMask(CachedPort):
    def visible(self, sequences: Array, positions: Array, cells: list[Cell]) -> Array:
        right = super().visible(sequences, positions, cells)
        return np.broadcast_to(right[:1], right.shape) if len(cells) > len(positions) else right


class PartsAveraged(CachedPort):
    """The cache's keys and the call's own each have a softmax, and the two are averaged."""

    def probabilities(self, scores: Array, visible: Array) -> Array:
        n_before = scores.shape[2] - len(scores)
        if not n_before:
            return super().probabilities(scores, visible)
        ends = (slice(0, n_before), slice(n_before, None))
        parts = [super(PartsAveraged, self).probabilities(scores[..., s], visible[..., s]) for s in ends]
        return np.concatenate(parts, axis=-1) / np.float32(2)


class EmptySlotsCount(CachedPort):
    """Four empty slots of a static cache take part in a step's softmax."""

    def probabilities(self, scores: Array, visible: Array) -> Array:
        if len(scores) > 1:
            return super().probabilities(scores, visible)
        empty = np.zeros((*scores.shape[:2], 4), np.float32)
        seen = np.concatenate([visible, np.ones((1, 1, 4), bool)], -1)
        return super().probabilities(np.concatenate([scores, empty], -1), seen)[..., :-4]


class Exchanged(CachedPort):
    """From the second call on sequence 0 is taken for 1, and 1 for 0."""

    def visible(self, sequences: Array, positions: Array, cells: list[Cell]) -> Array:
        return super().visible(1 - sequences if len(cells) > len(positions) else sequences, positions, cells)


class CountedTogether(CachedPort):
    """A step's positions count the rows of the batch as well."""

    def turned_at(self, positions: Array, first: Array) -> Array:
        return positions + np.arange(len(positions)) if first.min() > 0 else positions


class PrefixMoved(CachedPort):
    def share(self, source: int, target: int, end: int) -> None:
        for cell in self.cells:
            if source in cell.sequences and cell.position < end:
                cell.sequences = {target}


KEPT: Sequence[Fault] = (
    Fault("turned again, steps", TurnedAgain, "decode", 1, "attn_scores", "turned again"),
    Fault("turned again, chunks", TurnedAgain, "chunks", 1, "attn_scores", "turned again"),
    Fault("kept before RoPE", BeforeRope, "decode", 1, "attn_scores", "before RoPE"),
    Fault("another block's cache", BlockBefore, "decode", 1, "attn_scores", "cache of block 0"),
    Fault("scaled twice", ScaledTwice, "decode", 1, "attn_scores", "scaled when they are kept"),
    Fault("heads reversed", HeadsReversed, "decode", 1, "attn_scores", "another order"),
    Fault("a slot late", SlotLate, "decode", 1, "attn_scores", "one slot late"),
    Fault("a ring too small", Ring, "decode", 2, "attn_scores", "first key of the cache is not seen"),
    Fault("appended twice", AppendedTwice, "decode", 1, "attn_probs", "appended twice"),
    Fault(
        "value of the step before", StepBefore, "decode", 1, "attn_context", "the values that are appended"
    ),
    Fault("key of the step before", KeyOfTheStepBefore, "decode", 1, "attn_scores", "the keys that are app"),
    Fault("keys kept as values", KeysAsValues, "decode", 1, "attn_scores", "keys are kept as values"),
    Fault("first row's mask", FirstRowsMask, "chunks", 1, "attn_probs", "mask of its first row"),
    Fault("parts averaged", PartsAveraged, "chunks", 1, "attn_probs", "are averaged"),
    Fault("empty slots count", EmptySlotsCount, "decode", 1, "attn_probs", "keys that were not recorded"),
    Fault("sequences exchanged", Exchanged, "batch", 1, "attn_probs", "sequence 1 in place of their own", 0),
    Fault("counted together", CountedTogether, "batch", 1, "q_rope", "position was 4 instead of 3", 1),
    Fault("prefix moved", PrefixMoved, "prefix", 1, "attn_probs", "was moved to sequence 1", 0),
)
