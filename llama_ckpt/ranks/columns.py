"""Which of the model's columns a rank has, where they are not its own: found by looking for each of them.

A shard of a product is columns of the whole product, whatever was cut in whatever way: so each column that
a rank recorded is looked for among all that the matrices of that step give, on the same inputs. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama_ckpt.listing import ordinal, which
from llama_ckpt.points import block_point, split_name
from llama_ckpt.ranks.pieces import OF_HEADS, OF_KEY_HEADS, Array, axis_of, distance
from llama_ckpt.ranks.record import RankFault
from llama_ckpt.ranks.scene import Scene

__all__ = ["faults_of_columns"]

FUSED: dict[str, tuple[str, ...]] = {"q": ("q", "k", "v"), "k": ("q", "k", "v"), "v": ("q", "k", "v")}
FUSED |= dict.fromkeys(("ffn_gate", "ffn_up"), ("ffn_gate", "ffn_up"))
"""Points whose matrices people keep as one."""

TOGETHER = {3: "QKV", 2: "gate/up"}
FOUND = 0.95
"""A share of the columns that has to be found."""

MOST = 1 << 25
"""Of more pairs of columns every few of a rank's are looked for."""

NEAR = 1e-3
"""Relative distance below which a column may be another; what is said of all is measured then."""


@dataclass(frozen=True)
class Found:
    """Where a rank's columns are among all.

    Attributes:
        asked: numbers of the rank's columns that were looked for; at: where each is among all.
    """

    asked: Array
    at: Array


def faults_of_columns(scene: Scene, name: str, place: int, allowed: float) -> Iterator[RankFault]:
    """What a rank's columns are, where they are the model's and not its own.

    Args:
        name: of a shard. place: the rank's among those of its stage.
        allowed: the relative error of a right one.
    """
    block, point = split_name(name)
    holders, owned = scene.pieces.holders(name), scene.pieces.owned(name)
    rank = holders[place]
    x = scene.piece(rank, name)
    family = FUSED.get(point, (point,))
    names = [one if block is None else block_point(block, one) for one in family]
    wholes = [scene.exact(one) for one in names]
    if x is None or any(one is None for one in wholes) or owned is None:
        return
    flat = [_flat(one) for one in wholes if one is not None]
    every = np.concatenate(flat, axis=1)
    starts = dict(zip(family, np.cumsum([0, *(one.shape[1] for one in flat[:-1])]).tolist(), strict=True))
    mine = _flat(x)
    found = _found(mine, every)
    if found is None:
        return
    remaining = distance(mine[:, found.asked], every[:, found.at])
    if remaining > max(allowed, NEAR / 100):
        return
    each = mine.shape[1] // x.shape[axis_of(point, scene.pieces.plan.cuts[point].how)] if x.ndim > 2 else 1
    ranges = [range(starts[point] + one.start * each, starts[point] + one.stop * each) for one in owned]
    lengths = _local_lengths(scene, names, place)
    kind, does = _said(point, found, ranges, place, each, starts, lengths, every.shape[1])
    yield RankFault(kind, does, rank.rank, remaining)


def _flat(x: Array) -> Array:
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _local_lengths(scene: Scene, names: Sequence[str], place: int) -> list[int] | None:
    """How many columns the rank has of each of the points whose matrices are kept as one."""
    pieces = [scene.piece(scene.pieces.holders(one)[place], one) for one in names]
    return None if any(x is None for x in pieces) else [_flat(x).shape[1] for x in pieces if x is not None]


def _found(mine: Array, every: Array) -> Found | None:
    """Where the rank's columns are; None where most are nowhere."""
    step = max(1, mine.shape[1] * every.shape[1] // MOST)
    asked = np.arange(0, mine.shape[1], step)
    x = mine[:, asked]
    norms = np.einsum("nc,nc->c", every, every)
    near = norms[None] - 2 * (x.T @ every)  # the square of the distance, less what is the same for all
    at = near.argmin(1)
    off = np.linalg.norm(x - every[:, at], axis=0) / (np.linalg.norm(every[:, at], axis=0) + 1e-300)
    ok = off < NEAR
    return Found(asked[ok], at[ok]) if ok.mean() >= FOUND else None


def _said(
    point: str,
    found: Found,
    owned: Sequence[range],
    place: int,
    each: int,
    starts: dict[str, int],
    lengths: Sequence[int] | None,
    total: int,
) -> tuple[str, str]:
    """Kind and words of a wrong cut."""
    n, at, asked, start = len(owned), found.at, found.asked, starts[point]
    for other, one in enumerate(owned):
        if other != place and np.isin(at, one).all() and len(one) == len(owned[place]):
            head = _key_heads(point, found, owned[place], each, start, n)
            return head or ("another rank's shard", f"has the shard of rank {other}")
    if lengths is not None and len(starts) > 1:
        before = sum(lengths[: list(starts).index(point)])
        if np.array_equal(at, place * (total // n) + before + asked):
            what = TOGETHER[len(starts)]
            return "cut", f"has a piece of the fused {what} as if it were one matrix, cut evenly over ranks"
    of_point = (at >= start) & (at < start + max(one.stop for one in owned) - start)
    if not of_point.all():
        others = [one for one in starts if one != point and (at >= starts[one]).any()]
        return "cut", f"has rows of another matrix than {point}'s ({', '.join(others)} is beside it)"
    if head := _key_heads(point, found, owned[place], each, start, n):
        return head
    inside = at - start
    if np.array_equal(inside, asked * n + place):
        return "cut", f"has every {ordinal(n)} column from {place} on, wanted a range"
    if each > 1 and np.array_equal(inside, (asked // each * n + place) * each + asked % each):
        return (
            "cut",
            f"has every {ordinal(n)} head from {place} on, wanted neighbours: heads are dealt out in turn",
        )
    first, wanted = int(inside[0] - asked[0]), owned[place].start - start
    if np.array_equal(inside, asked + first):
        kind = "vocabulary" if point == "logits" else "cut"
        padded = (
            ": the padding of ranks before it is counted" if kind == "vocabulary" and first < wanted else ""
        )
        return kind, f"has columns from {first} on, wanted from {wanted} on{padded}"
    numbers = which("column", np.unique(inside).tolist(), total)
    return "cut", f"has {numbers}, in another order or of other ranks"


def _key_heads(point: str, found: Found, own: range, each: int, start: int, n: int) -> tuple[str, str] | None:
    """Of key heads, which it has and which it should."""
    if point not in OF_KEY_HEADS or each < 2:
        return None
    heads = sorted({int(one - start) // each for one in found.at})
    wanted = sorted({(one - start) // each for one in own})
    if heads == wanted or len(heads) > 1:
        return None
    return "key heads", f"has key head {heads[0]}, wanted {wanted[0]}, the one of its query heads"


def is_of_heads(point: str) -> bool:
    """Whether a point has an axis of heads."""
    return point in OF_HEADS or point in OF_KEY_HEADS
