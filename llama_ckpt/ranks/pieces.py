"""What each rank holds of a point, and the whole that it makes, as seen from one rank.

Ranks may hold a point whole, as all have the residual stream, or a piece of it; or one key head may be on
several ranks. So what the whole is depends on where one stands: `Pieces.whole` takes of a point that several
ranks hold the one of the rank that is asked for. numpy only; one tensor is read at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.comparison import LintFinding
from llama_ckpt.comparing.fitting import fit
from llama_ckpt.dumps.stored_points import in_order
from llama_ckpt.errors import DumpError
from llama_ckpt.points import POINTS, block_input, block_point, split_name
from llama_ckpt.ranks.place import RankDump
from llama_ckpt.ranks.plan import HEADS, PARTIAL, Plan

__all__ = ["Array", "Pieces", "axis_of"]

Array: TypeAlias = NDArray[Any]

OF_HEADS = frozenset("q q_rope attn_scores attn_probs".split())
OF_KEY_HEADS = frozenset("k k_rope v".split())

SUM_AFTER = {"attn_out": "ffn_inp", "ffn_out": "out"}
"""Sums over ranks, and the residual sum that reads each."""

NEAR_ENOUGH = 0.05
"""Relative distance from what parts should add up to, below which a reading of them is the one meant."""

SAME = 1e-3
"""Relative distance below which two ranks hold one tensor: parts of a sum are far further apart."""


def axis_of(point: str, how: str) -> int:
    """Which axis of a point is cut."""
    axes = POINTS[point].axes
    return 1 if how == HEADS and len(axes) > 2 else len(axes) - 1


def _nothing(name: str) -> Array | None:
    """What parts of a sum come to where there is no model: nobody knows."""
    return None


@dataclass
class Pieces:
    """All ranks' tensors.

    Attributes:
        ranks: every rank in its place.
        plan: how points are cut.
        sizes: how long each axis of the model is, by its name, tokens and keys with it.
        sum_of: gives what parts should add up to, nearly; None where nobody knows.
        unit: what one rounding of the program's precision is at most, relative to the number.
        findings: what does not fit together, each once.
        notes: what was read as meant.
    """

    ranks: Sequence[RankDump]
    plan: Plan
    sizes: Mapping[str, int]
    sum_of: Callable[[str], Array | None] = _nothing
    unit: float = 2.0**-24
    findings: dict[tuple[str, str, int], LintFinding] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    _read: dict[tuple[int, str], Array | None] = field(default_factory=dict)  # the latest few

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every point that some rank has, in the order of the data's flow."""
        return in_order({name for rank in self.ranks for name in rank.names})

    def holders(self, name: str) -> list[RankDump]:
        """The ranks of the stage that has a point, or should have, in their order, those without it too."""
        block, point = split_name(name)
        having = [rank.stage for rank in self.ranks if name in rank.names]
        having = having or [
            rank.stage for rank in self.ranks if block in {split_name(one)[0] for one in rank.names}
        ]
        if not having:
            return list(self.ranks)
        # An embedding that a later stage ties its head to is no point of that stage.
        stage = max(having) if block is None and point != "embd" else min(having)
        return [rank for rank in self.ranks if rank.stage == stage]

    # -- one rank's

    def piece(self, rank: RankDump, name: str) -> Array | None:
        """What a rank has of a point, with the point's axes; None where it has none, or none that fits."""
        key = rank.rank, name
        if key not in self._read:
            while len(self._read) >= 2 * len(self.ranks):
                del self._read[next(iter(self._read))]
            self._read[key] = self._fitted(rank, name)
        return self._read[key]

    def _fitted(self, rank: RankDump, name: str) -> Array | None:
        if name not in rank.names:
            return None
        point, own = split_name(name)[1], rank.own_name(name)
        axes, shape = POINTS[point].axes, rank.dump.shape(own)
        cut = self.plan.cuts[point]
        local = dict(self.sizes)
        single = point == "logits" and sum(size > 1 for size in shape) < 2
        if cut.is_shard:
            axis = axis_of(point, cut.how)
            others = math.prod(self.sizes[one] for i, one in enumerate(axes) if i != axis)
            others = 1 if single else others
            if math.prod(shape) % others:
                self._does_not_fit(rank, name, shape)
                return None
            local[axes[axis]] = math.prod(shape) // others
        x = rank.dump.read(own, local)
        if single:
            return x.reshape(1, -1)
        self._refuse_sequences(rank, name, x)
        fitted = fit(name, x, local, lambda: None)
        if fitted.finding is not None:
            found = replace(fitted.finding, message=f"rank {rank.rank}: {fitted.finding.message}")
            self.findings.setdefault((found.kind, point, rank.rank), found)
        if fitted.note is not None:
            self.notes[f"{point}: {fitted.note}"] = None
        return fitted.array

    def _refuse_sequences(self, rank: RankDump, name: str, x: Array) -> None:
        """Rows of some tokens alone: what people call sequence parallel."""
        n, each = self.sizes["token"], len(self.holders(name))
        point = split_name(name)[1]
        if self.plan.cuts[point].is_shard or each < 2 or n % each:
            return
        squeezed = tuple(size for size in x.shape if size != 1)
        whole = tuple(self.sizes[axis] for axis in POINTS[point].axes)
        if squeezed == (n // each, *whole[1:]) and n // each > 1:
            raise DumpError(
                f"rank {rank.rank}: {name}",
                got=f"{n // each} of {n} tokens, as sequence parallel has them",
                wanted="all tokens",
                hint="sequence parallel is not supported: gather before you record, or turn it off",
            )

    def _does_not_fit(self, rank: RankDump, name: str, shape: Sequence[int]) -> None:
        axes = ", ".join(POINTS[split_name(name)[1]].axes)
        message = f"rank {rank.rank}: {name} has the shape {list(shape)}, which is no piece of [{axes}]"
        hint = "write it row-major with the token first, or say how it lies with --map"
        key = "shape", split_name(name)[1], rank.rank
        self.findings.setdefault(key, LintFinding("shape", name, message, hint))

    # -- who has what

    def lengths(self, name: str) -> list[int]:
        """How many each rank of the stage holds along the cut axis; 0 where it has none."""
        point = split_name(name)[1]
        axis = axis_of(point, self.plan.cuts[point].how)
        pieces = (self.piece(rank, name) for rank in self.holders(name))
        return [0 if x is None else x.shape[axis] for x in pieces]

    def full(self, point: str) -> int:
        """How long the cut axis of a point is in the model."""
        return self.sizes[POINTS[point].axes[axis_of(point, self.plan.cuts[point].how)]]

    def owned(self, name: str) -> list[range] | None:
        """What of the cut axis each rank of the stage should have; None where the pieces do not go together.

        Where every rank has all of it, that is all.
        """
        point, lengths = split_name(name)[1], self.lengths(name)
        full, given = self.full(point), self.plan.cuts[point].lengths
        held = [one for one in lengths if one]
        if all(one >= full for one in held) and (len(held) < len(lengths) or sum(held) > full):
            return [range(min(one, full)) for one in lengths]
        if len(held) < len(lengths):
            return None
        if given is not None:
            lengths = list(given) if len(given) == len(lengths) and sum(given) == full else []
        if sum(lengths) == full or (point == "logits" and sum(lengths) > full):
            ends = np.minimum(np.cumsum(lengths), full).tolist()
            return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        if point in OF_KEY_HEADS:
            return self._key_heads(name, lengths)
        return None

    def _key_heads(self, name: str, lengths: Sequence[int]) -> list[range] | None:
        """Where there are more ranks than key heads: those that a rank's own query heads need."""
        n, kv = len(lengths), self.sizes["kv_head"]
        group = self.sizes["head"] // kv
        queries = self.shares("head", n)
        needed = [range(one.start // group, (one.stop - 1) // group + 1) for one in queries]
        return needed if [len(one) for one in needed] == list(lengths) else None

    def shares(self, axis: str, n: int) -> list[range]:
        """An axis over n ranks, as evenly as it goes, the first ranks having one more."""
        each, more = divmod(self.sizes[axis], n)
        ends = np.cumsum([each + (place < more) for place in range(n)]).tolist()
        return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    # -- the whole

    def whole(self, name: str, seen_from: int = 0) -> Array | None:
        """A point as it is seen from a rank; None where it does not come together.

        Args:
            seen_from: the rank whose own is taken of what several ranks have.
        """
        point = split_name(name)[1]
        cut, holders = self.plan.cuts[point], self.holders(name)
        if cut.is_shard:
            return self._from_shards(name, seen_from)
        pieces = {rank.rank: x for rank in holders if (x := self.piece(rank, name)) is not None}
        if not pieces:
            return None
        own = pieces.get(seen_from, next(iter(pieces.values())))
        if len(pieces) == 1 or (cut.how != PARTIAL and point != "embd"):
            return own
        return self._reduced(name, own, list(pieces.values()), seen_from)

    def _from_shards(self, name: str, seen_from: int) -> Array | None:
        point, holders = split_name(name)[1], self.holders(name)
        axis, owned = axis_of(point, self.plan.cuts[point].how), self.owned(name)
        if owned is None:
            self._do_not_go_together(name)
            return None
        pieces = [self.piece(rank, name) for rank in holders]
        order = sorted(range(len(holders)), key=lambda i: holders[i].rank == seen_from)  # its own goes last
        full = self.full(point)
        having = [i for i in order if pieces[i] is not None]
        last = pieces[having[-1]]
        assert last is not None
        if all(len(owned[i]) == full for i in having):
            return last
        shape = list(last.shape)
        shape[axis] = full
        made = np.zeros(shape, np.result_type(*(x for x in pieces if x is not None)))
        for i in having:
            x, at = pieces[i], owned[i]
            assert x is not None
            index: list[Any] = [slice(None)] * made.ndim
            index[axis] = slice(at.start, at.stop)
            made[tuple(index)] = x[(*index[:axis], slice(0, len(at)), *index[axis + 1 :])]
        return made

    def _do_not_go_together(self, name: str) -> None:
        point, lengths = split_name(name)[1], self.lengths(name)
        missing = [rank.rank for rank, n in zip(self.holders(name), lengths, strict=True) if not n]
        if missing:
            message = f"{name}: rank {missing[0]} has none, and the others' do not make a whole"
            found = LintFinding("missing_point", name, message, "record it on every rank")
        else:
            noun = POINTS[point].axes[axis_of(point, self.plan.cuts[point].how)].replace("_", " ")
            message = f"{name}: the ranks have {' + '.join(map(str, lengths))} along {noun}"
            message += f", the model {self.full(point)}"
            found = LintFinding("shape", name, message, "say in a plan how many are each rank's own")
        self.findings.setdefault((found.kind, point, -1), found)

    def _reduced(self, name: str, own: Array, pieces: Sequence[Array], seen_from: int) -> Array:
        """A sum over ranks of which each has recorded its part, or what it had after the reduction."""
        alike = all(distance(x, pieces[0]) < SAME for x in pieces[1:])
        if alike:  # parts never are
            return own
        added = np.sum([np.asarray(x, np.float64) for x in pieces], axis=0)
        exact = self.sum_of(name)
        chosen = None
        if exact is not None and exact.shape == own.shape:
            off = [distance(x, exact) for x in (own, added, *pieces)]
            best = min(range(len(off)), key=off.__getitem__)
            if off[best] < NEAR_ENOUGH:
                chosen = best if off[0] > 2 * off[best] else 0
        if chosen is None:
            # Every rank has an embedding; only where they differ is one cut by the vocabulary.
            chosen = 0 if split_name(name)[1] == "embd" else 1
        return (
            self._as_reduced(name, added, pieces, seen_from) if chosen == 1 else (own, added, *pieces)[chosen]
        )

    def _as_reduced(self, name: str, added: Array, pieces: Sequence[Array], seen_from: int) -> Array:
        """A sum of parts as it came out of the reduction, which rounds in an order of its own.

        What was added to the residual tells; nearer to it than a reduction rounds at most nothing is moved.
        """
        block, point = split_name(name)
        if block is None or len(pieces) < 2:
            return added
        before = block_input(block) if point == "attn_out" else block_point(block, "ffn_inp")
        after = block_point(block, SUM_AFTER[point])
        if before not in self.names or after not in self.names:
            return added
        start, end = self.whole(before, seen_from), self.whole(after, seen_from)
        if start is None or end is None or start.shape != added.shape or end.shape != added.shape:
            return added
        most = (len(pieces) - 1) * self.unit * np.sum(np.abs(pieces), axis=0, dtype=np.float64)
        with np.errstate(all="ignore"):
            moved = np.clip(end - start.astype(np.float64) - added, -most, most)
        return np.asarray(added + np.nan_to_num(moved))


def distance(x: Array, y: Array) -> float:
    """How far x is from y, relative to y; infinite where one is not finite or their shapes differ."""
    if x.shape != y.shape:
        return math.inf
    off = float(np.linalg.norm(np.asarray(x, np.float64) - y)) / (float(np.linalg.norm(y)) or 1.0)
    return off if math.isfinite(off) else math.inf
