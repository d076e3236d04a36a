"""The block whose weights explain all that was recorded of this one.

A wrong norm or matrix may be a single tensor's mistake, or the whole block is another's: a stage that was
loaded with another's layers. Each recorded tensor of the block is held against its own step with the other
block's weights. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.operands import MATRIX_OF, gated
from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.identify.sources import other_blocks
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.judging.matching import passes
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import ALL_POINTS, BLOCK_INPUT, block_point, split_name

__all__ = ["whole_block_guesses"]

Array: TypeAlias = NDArray[Any]

NORMS = {"attn_norm": BLOCK_INPUT, "ffn_norm": "ffn_inp"}
READS = {
    **dict.fromkeys(("q", "k", "v"), "attn_norm"),
    **dict.fromkeys(("ffn_gate", "ffn_up"), "ffn_norm"),
    "attn_out": "attn_context",
    "ffn_out": "ffn_swiglu",
}
"""What a product of a block reads."""

FEWEST = 4
"""So many tensors must be another block's for it to be called the whole block's weights."""


def whole_block_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where a step with a weight is the first wrong one."""
    if asked.point not in {*NORMS, *MATRIX_OF} or asked.block is None or asked.around.weights is None:
        return
    for number in other_blocks(asked):
        weights = asked.around.weights.blocks[number]
        first = _made(asked, asked.point, weights)
        if first is None or not _fits(asked, asked.point, first):
            continue
        points = [p for p in (*NORMS, *MATRIX_OF) if asked.theirs(p) is not None]
        made = {point: _made(asked, point, weights) for point in points}
        known = {point: array for point, array in made.items() if array is not None}
        if len(known) < FEWEST or not all(_fits(asked, point, array) for point, array in known.items()):
            continue
        said = f"block {asked.block} is computed with the weights of block {number}"
        yield Guess(
            "block.weights",
            said,
            _of_the_call(asked, known),
            parameters={"block": number, "points": list(known)},
            code="the loop that loads blocks, or the numbering of a stage's layers",
        )
        return


def _made(asked: Asked, point: str, weights: Any) -> Array | None:
    """A point with another block's weights, on what they recorded before it."""
    config = asked.around.config
    if point in NORMS:
        x = _read(asked, NORMS[point])
        eps = getattr(config, "rms_norm_eps", None)
        if x is None or eps is None:
            return None
        return oracle.rms_norm(x, getattr(weights, point), eps=eps)
    x = _read(asked, READS[point]) if point in READS else None
    return None if x is None else x.reshape(len(x), -1) @ np.asarray(getattr(weights, MATRIX_OF[point])).T


def _read(asked: Asked, point: str) -> Array | None:
    if point == BLOCK_INPUT:
        function = ALL_POINTS[asked.point].function
        found = asked.given.get("x") if function == "rms_norm" and asked.point == "attn_norm" else None
        found = asked.theirs(point) if found is None else found
        return None if found is None else np.asarray(found, np.float64)
    if ALL_POINTS[asked.point].reads == (point,) and "x" in asked.given:
        return np.asarray(asked.given["x"], np.float64)
    return asked.theirs(point)


def _fits(asked: Asked, point: str, made: Array) -> bool:
    theirs = asked.theirs(point)
    if theirs is None:
        return True
    if theirs.size != made.size:
        return False
    one = asked.of(point)
    limit = limit_for(point, asked.first.limit.dtype, "own") if one is None else one.limit
    return passes(theirs.reshape(made.shape), made, limit)


def _of_the_call(asked: Asked, made: Mapping[str, Array]) -> dict[str, Array]:
    """What the call's own tensors are then, by full name."""
    found = {}
    made = dict(made)
    if {"ffn_gate", "ffn_up"} <= made.keys():
        made["ffn_swiglu"] = gated(made["ffn_gate"], made["ffn_up"])
    for one in asked.evidence:
        point = split_name(one.name)[1]
        if point in made:
            found[block_point(asked.block or 0, point)] = made[point].reshape(np.shape(one.o))
    return found
