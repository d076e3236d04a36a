"""Which ranks are wrong at the first wrong point, and what each of them did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama_ckpt.judging.verdict import causal_mask
from llama_ckpt.points import POINTS, split_name
from llama_ckpt.ranks.columns import faults_of_columns
from llama_ckpt.ranks.layers import faults_of_layers, own_part
from llama_ckpt.ranks.pieces import SAME, Array, distance
from llama_ckpt.ranks.plan import PARTIAL
from llama_ckpt.ranks.record import RankFault, ranks_of
from llama_ckpt.ranks.scene import Scene
from llama_ckpt.ranks.sums import SUM_BEFORE, faults_of_parts, faults_of_sums

__all__ = ["Culprits", "culprits"]

WIDER = 3.0
"""A rank's piece may be so many times further off than the whole: it has fewer elements."""

NAMED = 30.0
"""What explains a rank leaves so many times the limit at most, or NEAR."""

NEAR = 2e-6


@dataclass(frozen=True)
class Culprits:
    """Who is wrong at a point.

    Attributes:
        name: the point. of: how many ranks there are in all.
        errors: each rank's relative error that has it, by its number.
        wrong: the ranks that are off. faults: what they did, where that is known, one for each at most.
    """

    name: str
    of: int
    errors: dict[int, float]
    wrong: tuple[int, ...]
    faults: tuple[RankFault, ...]

    @property
    def named(self) -> bool:
        """Whether it is known of every wrong rank what it did."""
        return bool(self.wrong) and {one.rank for one in self.faults} == set(self.wrong)

    @property
    def remaining(self) -> float:
        """What the faults leave at most."""
        return max((one.remaining for one in self.faults), default=float("nan"))

    def sentence(self) -> str:
        """What was done, by whom; where that is not known, who is off and who is not."""
        n = self.of
        if not self.named:
            right = [rank for rank in self.errors if rank not in self.wrong]
            those = f"; {ranks_of(right, n)} {_is(right, n)} right" if right else ""
            return f"{ranks_of(self.wrong, n)} {_is(self.wrong, n)} off{those}"
        groups: dict[str, list[int]] = {}
        for fault in self.faults:
            groups.setdefault(fault.does, []).append(fault.rank)
        return "; ".join(
            f"{ranks_of(ranks, n)} {_of_several(ranks, does, n)}" for does, ranks in groups.items()
        )


def _is(ranks: Sequence[int], n: int) -> str:
    return "is" if len(ranks) in (1, n) else "are"


def _of_several(ranks: list[int], does: str, n: int) -> str:
    """The clause as it stands behind several ranks."""
    if len(ranks) == 1 or (len(ranks) == n and n > 1):
        return does
    first, _, rest = does.partition(" ")
    plural = {"has": "have", "adds": "add", "misses": "miss", "reads": "read", "leaves": "leave"}
    plural["is"] = "are"
    return f"{plural.get(first, first)} {rest}"


def culprits(scene: Scene, name: str, limit: float) -> Culprits:
    """Look at a wrong point rank by rank.

    Args:
        limit: what was allowed of the whole's relative error.
    """
    holders = scene.pieces.holders(name)
    errors = {
        rank.rank: _error(scene, name, place) for place, rank in enumerate(holders) if name in rank.names
    }
    wrong = [rank for rank, error in errors.items() if not error <= WIDER * limit]
    if not wrong:
        wrong = [max(errors, key=errors.__getitem__)]
    best = []
    for place, rank in enumerate(holders):
        if rank.rank not in wrong:
            continue
        found = min(_faults(scene, name, place, limit), key=lambda one: one.remaining, default=None)
        if found is not None and found.remaining <= max(NAMED * limit, NEAR) < errors[rank.rank]:
            best.append(found)
    return Culprits(name, len(scene.pieces.ranks), errors, tuple(wrong), tuple(best))


def _error(scene: Scene, name: str, place: int) -> float:
    """How far a rank's piece is from what it should be."""
    x = scene.piece(scene.pieces.holders(name)[place], name)
    exact = _right(scene, name, place, x)
    if x is None or exact is None:
        return float("inf")
    if POINTS[split_name(name)[1]].causal and x.ndim == 3 and x.shape == exact.shape:
        mask = np.asarray(causal_mask(scene.positions))
        x, exact = np.where(mask, x, 0.0), np.where(mask, exact, 0.0)
    if split_name(name)[1] == "logits" and len(x) == 1:
        exact = exact[-1:]
    if x.shape[-1] > exact.shape[-1] and split_name(name)[1] == "logits":
        x = x[..., : exact.shape[-1]]  # padding
    return distance(x, exact)


def _right(scene: Scene, name: str, place: int, x: Array | None) -> Array | None:
    """What a rank should hold; of a sum over ranks its part or the whole, whichever is nearer."""
    exact = scene.exact(name)
    if exact is None:
        return None
    if _in_parts(scene, name) and (parts := scene.parts(name)) is not None and x is not None:
        return min((parts[place], exact), key=lambda one: distance(x, one))
    return own_part(scene, name, place, np.asarray(exact))


def _in_parts(scene: Scene, name: str) -> bool:
    """Whether the ranks hold parts of a sum: they are not alike."""
    point = split_name(name)[1]
    if scene.pieces.plan.cuts[point].how != PARTIAL and point != "embd":
        return False
    having = [scene.piece(rank, name) for rank in scene.pieces.holders(name)]
    pieces = [x for x in having if x is not None]
    return len(pieces) > 1 and any(distance(x, pieces[0]) > SAME for x in pieces[1:])


def _faults(scene: Scene, name: str, place: int, limit: float) -> Iterator[RankFault]:
    """All that may explain a rank's piece, with what each leaves."""
    point = split_name(name)[1]
    if scene.pieces.plan.cuts[point].is_shard:
        yield from faults_of_columns(scene, name, place, WIDER * limit)
    elif _in_parts(scene, name):
        yield from faults_of_parts(scene, name, place)
        yield from faults_of_sums(scene, name, place)
    elif point in SUM_BEFORE or point in SUM_BEFORE.values() or point == "embd":
        yield from faults_of_sums(scene, name, place)
    yield from faults_of_layers(scene, name, place)
