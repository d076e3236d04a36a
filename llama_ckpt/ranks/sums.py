"""What became of a sum over ranks: each way of doing it wrongly, as a tensor to be held against theirs.

After a matrix that is cut by its inputs each rank has a part of every element; the parts are added up, the
bias once, and then the residual. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama_ckpt.listing import ordinal
from llama_ckpt.points import block_point, split_name
from llama_ckpt.ranks.pieces import Array, distance
from llama_ckpt.ranks.record import RankFault
from llama_ckpt.ranks.scene import INPUT_OF, MATRIX_OF, Scene

__all__ = ["faults_of_parts", "faults_of_sums"]

SUM_BEFORE = {"ffn_inp": "attn_out", "out": "ffn_out"}
"""Residual sums, and the sum over ranks that is added there."""


@dataclass(frozen=True)
class Reduction:
    """What goes into a sum over ranks.

    Attributes:
        parts: each rank's. whole: what they come to. start: the residual that is added then.
        bias: that one rank adds; None without one. rank: whose sum is asked for.
    """

    parts: Sequence[Array]
    whole: Array
    start: Array
    bias: Array | None
    rank: int

    def wrong(self) -> Iterator[tuple[str, str, Array]]:
        """Kind, words, and what the sum is then, without the residual."""
        n, whole = len(self.parts), self.whole
        if n > 1:
            yield "reduction", "adds its own part alone: the reduction over ranks is missing", self.own
            yield "reduction", f"has {n} times the sum over ranks: it is reduced twice", n * whole
            yield "reduction", f"has the mean over ranks, a {_th(n)} of their sum: it is averaged", whole / n
            yield "residual", "has the residual in the sum, added on every rank", whole + (n - 1) * self.start
            twice = n * whole + (n - 1) * self.start
            yield "reduction", f"has {n} times the sum, the residual too: it is reduced after it", twice
        if n > 2:
            for other, part in enumerate(self.parts):
                yield "reduction", f"misses the part of rank {other}", whole - part
                yield "reduction", f"has the part of rank {other} twice", whole + part
        if self.bias is not None and n > 1:
            yield "bias", "has the bias of every rank, wanted that of one", whole + (n - 1) * self.bias
            yield "bias", "has the bias of no rank, wanted that of one", whole - self.bias
        yield "residual", "adds nothing to the residual", np.zeros_like(whole)

    @property
    def own(self) -> Array:
        """The rank's own part."""
        return np.asarray(self.parts[self.rank])


def _th(n: int) -> str:
    return {2: "half", 3: "third", 4: "quarter"}.get(n, ordinal(n))


def _reduction(scene: Scene, name: str, place: int) -> Reduction | None:
    """Of a sum over ranks by its name."""
    block, point = split_name(name)
    parts = scene.parts(name)
    if parts is None:
        return None
    if block is None:
        return Reduction(parts, np.sum(parts, axis=0), np.zeros_like(parts[0]), None, place)
    start = scene.start(block) if point == "attn_out" else scene.block(block).known("ffn_inp")
    assert start is not None
    return Reduction(parts, np.sum(parts, axis=0), np.asarray(start), scene.bias(name), place)


def faults_of_sums(scene: Scene, name: str, place: int) -> Iterator[RankFault]:
    """What a rank made of the sum over ranks, at the sum itself or after the residual."""
    block, point = split_name(name)
    rank = scene.pieces.holders(name)[place]
    x = scene.piece(rank, name)
    source = SUM_BEFORE.get(point, point)
    reduction = _reduction(scene, source if block is None else block_point(block, source), place)
    if x is None or reduction is None or x.shape != reduction.whole.shape:
        return
    residual = reduction.start if point in SUM_BEFORE else 0.0
    for kind, does, made in reduction.wrong():
        yield RankFault(kind, does, rank.rank, distance(x, residual + made))
    if point not in SUM_BEFORE:
        return
    yield RankFault("residual", "leaves the residual out", rank.rank, distance(x, reduction.whole))
    if point == "out" and block is not None:
        yield from _both(scene, block, x, place, rank.rank)


def _both(scene: Scene, block: int, x: Array, place: int, rank: int) -> Iterator[RankFault]:
    """The end of a block of which nothing else was recorded: both of its sums done in the same way."""
    if scene.recorded(block_point(block, "ffn_inp")) is not None:
        return
    first = _reduction(scene, block_point(block, "attn_out"), place)
    assert first is not None
    run = scene.block(block)
    matrix = run.weights.w_down
    bias = scene.bias(block_point(block, "ffn_out"))
    owned = scene.owned_inputs(block_point(block, "ffn_out"))
    for number, (kind, does, made) in enumerate(list(first.wrong())):
        start = first.start + made
        gated = run.on({"ffn_inp": start}).compute("ffn_swiglu")
        if gated is None:
            continue
        parts = [gated[:, one.start : one.stop] @ matrix[:, one.start : one.stop].T for one in owned]
        parts = [part + bias if bias is not None and i == 0 else part for i, part in enumerate(parts)]
        second = Reduction(parts, np.sum(parts, axis=0), start, bias, place)
        wrong = list(second.wrong())
        if number < len(wrong):
            yield RankFault(kind, f"{does}, in both sums", rank, distance(x, start + wrong[number][2]))


def faults_of_parts(scene: Scene, name: str, place: int) -> Iterator[RankFault]:
    """What a rank's part of a sum is, where it is not its own."""
    block, point = split_name(name)
    holders, parts = scene.pieces.holders(name), scene.parts(name)
    rank = holders[place]
    x = scene.piece(rank, name)
    if x is None or parts is None or block is None or point not in MATRIX_OF:
        return
    reduction = _reduction(scene, name, place)
    assert reduction is not None

    def fault(kind: str, does: str, made: Array) -> RankFault:
        return RankFault(kind, does, rank.rank, distance(x, made))

    own, n = parts[place], len(parts)
    bias = reduction.bias
    if bias is not None:
        there = "has the bias in its part, as every rank: wanted that of one" if place else ""
        if place:
            yield fault("bias", there, own + bias)
        else:
            yield fault("bias", "has no bias in its part, and no rank has", own - bias)
    yield fault("residual", "has the residual in its part: it is added on every rank", own + reduction.start)
    yield fault("reduction", "has its part divided by the number of ranks", own / n)
    yield fault("reduction", "has its part multiplied by the number of ranks", own * n)
    yield fault("reduction", "has nothing in its part", np.zeros_like(own))
    yield from _with_other_inputs(scene, name, place, x)


def _with_other_inputs(scene: Scene, name: str, place: int, x: Array) -> Iterator[RankFault]:
    """The part with columns of the matrix, or inputs, that are another rank's."""
    block, point = split_name(name)
    assert block is not None
    run, rank = scene.block(block), scene.pieces.holders(name)[place].rank
    given, matrix = run.known(INPUT_OF[point]), getattr(run.weights, MATRIX_OF[point][0])
    if given is None:
        return
    given = np.asarray(given).reshape(len(given), -1)
    owned = scene.owned_inputs(name)
    own, n = owned[place], len(owned)
    mine = given[:, own.start : own.stop]
    what = f"of the matrix behind {point}"

    def fault(does: str, columns: Array, inputs: Array = mine) -> RankFault:
        return RankFault("another rank's shard", does, rank, distance(x, inputs @ columns.T))

    for other, one in enumerate(owned):
        if other == place or len(one) != len(own):
            continue
        columns = matrix[:, one.start : one.stop]
        yield fault(f"has the columns of rank {other} {what}", columns)
        theirs = given[:, one.start : one.stop]
        yield fault(f"has the inputs of rank {other} {what}", matrix[:, own.start : own.stop], theirs)
        yield fault(f"has the part of rank {other}", columns, theirs)
    striped = matrix[:, place::n]
    if striped.shape[1] == mine.shape[1]:
        yield fault(f"has every {ordinal(n)} column from {place} on {what}, wanted a range", striped)
    if matrix.shape[0] == matrix.shape[1]:
        yield fault(
            f"has rows {what} where columns are wanted: it is cut the other way",
            matrix[own.start : own.stop].T,
        )
