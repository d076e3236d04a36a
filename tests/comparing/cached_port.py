"""The port with a cache, called as engines are: chunks, steps, batches, rollbacks, prefixes that are copied.

One cache of cells serves all sequences; a cell belongs to some of them and has a position. A wrong program
overrides a method, as in `ported_llama`. `run` makes the calls of a plan and `written` writes the dump, each
call's tensors by themselves or all one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.theirs import save_dump
from tests.comparing.ported_llama import Array, Port

__all__ = ["CachedPort", "Remove", "Share", "Step", "compared", "judged", "written"]


@dataclass(frozen=True)
class Step:
    """One call: each row's sequence and token."""

    rows: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, tokens: Sequence[int], sequence: int = 0) -> Step:
        """Tokens of one sequence."""
        return cls(tuple((sequence, token) for token in tokens))


@dataclass(frozen=True)
class Remove:
    """The last tokens of a sequence, from a position on, are taken out of the cache."""

    sequence: int
    first: int


@dataclass(frozen=True)
class Share:
    """A sequence begins with another's first tokens."""

    source: int
    target: int
    end: int


@dataclass
class Cell:
    """One cell of the cache: whose it is, where it stands, and the row that it came from."""

    sequences: set[int]
    position: int
    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)


class CachedPort(Port):
    """The port; a fault overrides one of the methods below."""

    def __init__(self, model: Path) -> None:
        super().__init__(model)
        self.cells: list[Cell] = []
        self.lengths: dict[int, int] = {}
        self.facts: dict[str, list[int]] = {}
        self.calls: list[dict[str, Array]] = []

    # -- what a fault overrides

    def remove(self, sequence: int, first: int) -> None:
        for cell in self.cells:
            if cell.position >= first:
                cell.sequences.discard(sequence)
        self.cells = [cell for cell in self.cells if cell.sequences]

    def share(self, source: int, target: int, end: int) -> None:
        for cell in self.cells:
            if source in cell.sequences and cell.position < end:
                cell.sequences.add(target)

    def turned_at(self, positions: Array, first: Array) -> Array:
        """The positions that RoPE is given; `first` is each row's own sequence's before the call."""
        return positions

    def appended(self, block: int, cells: list[Cell], keys: Array, values: Array) -> None:
        """Write the new rows' keys and values."""
        for cell, key, value in zip(cells, keys, values, strict=True):
            cell.keys.append(key)
            cell.values.append(value)

    def visible(self, sequences: Array, positions: Array, cells: list[Cell]) -> Array:
        """`[rows, cells]`"""
        own = np.array([[s in cell.sequences for cell in cells] for s in sequences])
        return own & (np.array([cell.position for cell in cells]) <= positions[:, None])

    def attended(self, cells: list[Cell], new: int) -> list[Cell]:
        """The cells that a call reads; the last `new` are its own."""
        return cells

    # -- how it is put together

    def step(self, call: Step) -> None:
        sequences = np.array([sequence for sequence, _ in call.rows])
        positions, first = [], []
        for i, (sequence, _) in enumerate(call.rows):
            start = self.lengths.get(sequence, 0)
            first.append(start)
            positions.append(start + sum(s == sequence for s, _ in call.rows[:i]))
        at, ids = np.array(positions), [token for _, token in call.rows]
        new = [Cell({int(s)}, int(p)) for s, p in zip(sequences, at, strict=True)]
        for sequence, _ in call.rows:
            self.lengths[sequence] = self.lengths.get(sequence, 0) + 1
        self.cells += new
        self._call = (sequences, at, np.array(first), new)
        self.calls.append(dict(self.run(ids, self.turned_at(at, np.array(first)).tolist())))
        self.facts.setdefault("token_ids", []).extend(ids)
        for key, numbers in (("positions", at), ("sequences", sequences)):
            self.facts.setdefault(key, []).extend(numbers.tolist())
        self.facts.setdefault("calls", []).extend([len(self.calls) - 1] * len(ids))

    def attention(self, x: Array, weights: Any, positions: Array, at: str) -> Array:
        c, n, block = self.config, len(x), int(at.split(".")[1])
        sequences, own, _, new = self._call
        heads = (c.n_heads, c.n_kv_heads, c.n_kv_heads)
        made = [
            self.product(x, w).reshape(n, h, c.head_dim)
            for w, h in zip(self.projections(weights), heads, strict=True)
        ]
        q, k, v = (self.keep(at + name, y) for name, y in zip("qkv", made, strict=True))
        q = self.keep(at + "q_rope", self.turn(q, positions).astype(np.float32))
        k = self.keep(at + "k_rope", self.turn(k, positions).astype(np.float32))
        self.appended(block, new, k, v)
        cells = self.attended(self.cells, n)
        keys = self.repeated(np.stack([cell.keys[block] for cell in cells]))
        values = self.repeated(np.stack([cell.values[block] for cell in cells]))
        scores = self.keep(at + "attn_scores", np.einsum("nhd,mhd->nhm", q, keys))
        probs = self.probabilities(scores, self.visible(sequences, own, cells)[:, None])
        self.keep(at + "attn_probs", probs)
        mixed = np.einsum("nhm,mhd->nhd", probs, values).reshape(n, -1)
        return self.keep(at + "attn_out", self.product(self.keep(at + "attn_context", mixed), weights.wo))

    def go(self, plan: Sequence[Step | Remove | Share]) -> None:
        """Make the calls of a plan."""
        for one in plan:
            if isinstance(one, Step):
                self.step(one)
            elif isinstance(one, Remove):
                self.remove(one.sequence, one.first)
                self.lengths[one.sequence] = one.first
            else:
                self.share(one.source, one.target, one.end)
                self.lengths[one.target] = one.end
                copied = [len(self.calls), one.source, one.target, 0, one.end]
                self.facts.setdefault("copies", []).extend(copied)


def written(program: CachedPort, path: Path, *, stacked: bool = False, kept: Any = None) -> None:
    """Write the dump of all calls."""
    keeps = kept or (lambda name: True)
    tensors: dict[str, Array] = {}
    if stacked:
        n = len(program.facts["token_ids"])
        n = max(n, *(call["blk.0.attn_scores"].shape[2] for call in program.calls))
        for name in filter(keeps, program.calls[0]):
            rows = [call[name] for call in program.calls]
            if name.endswith(("scores", "probs")):
                rows = [np.pad(one, ((0, 0), (0, 0), (0, n - one.shape[2]))) for one in rows]
            tensors[name] = np.concatenate(rows)
    else:
        for number, call in enumerate(program.calls):
            tensors |= {f"call.{number}.{name}": x for name, x in call.items() if keeps(name)}
    save_dump(path, tensors, **program.facts)  # type: ignore[arg-type]


def judged(
    program: CachedPort, folder: Path, plan: Sequence[Step | Remove | Share], **how: Any
) -> Comparison:
    """What `compare` says of the program's calls."""
    with np.errstate(all="ignore"):
        program.go(plan)
    return compared(program, folder, **how)


def compared(program: CachedPort, folder: Path, **how: Any) -> Comparison:
    """What `compare` says of the calls that it has made."""
    written(program, folder / "calls.safetensors", **how)
    return compare_dump(folder / "calls.safetensors", model=program.model)
