"""A block of a run on ranks as one rank sees it: what was recorded, and in float64 what follows from it.

What no rank recorded is computed from what is before, through whole blocks where need be. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from llama_ckpt.comparing.block_run import BlockRun, Given
from llama_ckpt.comparing.dataflow import Flow
from llama_ckpt.dumps.names_map import interleave_halves, pair_kind
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import BLOCK_POINTS, block_input, block_point, split_name
from llama_ckpt.ranks.pieces import Array, Pieces
from llama_ckpt.ranks.place import RankDump
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["INPUT_OF", "MATRIX_OF", "Scene"]

TURNED = ("q", "k", "q_rope", "k_rope")
MATRIX_OF = {"attn_out": ("wo", "bo"), "ffn_out": ("w_down", "b_down")}
"""Sums over ranks: the matrix that is cut by its inputs, and the bias that one rank adds."""

INPUT_OF = {"attn_out": "attn_context", "ffn_out": "ffn_swiglu"}


@dataclass
class Scene:
    """A run as it is seen from one rank.

    Attributes:
        pieces: of all ranks. seen_from: the rank.
        config, weights: the model. token_ids, positions: of the run. dtype: of the program.
    """

    pieces: Pieces
    seen_from: int
    config: LlamaConfig
    weights: OracleWeights
    token_ids: Sequence[int]
    positions: Sequence[int]
    dtype: str
    _blocks: dict[int, BlockRun] = field(default_factory=dict)

    @cached_property
    def half_split(self) -> bool:
        """Whether their features lie in the order of Hugging Face, pairs (i, i + d/2)."""
        for block in range(self.config.n_layers):
            names = [block_point(block, point) for point in ("q", "q_rope")]
            if all(name in self.pieces.names for name in names):
                q, turned = (self.pieces.whole(name, self.seen_from) for name in names)
                if q is not None and turned is not None:
                    return pair_kind(q, turned, self.positions) == "half-split"
        return False

    def ours(self, name: str, x: Array | None) -> Array | None:
        """A tensor of theirs in our order of features, float64."""
        if x is None:
            return None
        turned = self.half_split and split_name(name)[1] in TURNED
        return np.asarray(interleave_halves(x) if turned else x, np.float64)

    def recorded(self, name: str) -> Array | None:
        """A whole point as it was recorded; None where it was not, or is not finite."""
        if name not in self.pieces.names:
            return None
        x = self.ours(name, self.pieces.whole(name, self.seen_from))
        return x if x is not None and np.isfinite(x).all() else None

    def piece(self, rank: RankDump, name: str) -> Array | None:
        """What one rank recorded of a point."""
        return self.ours(name, self.pieces.piece(rank, name))

    def start(self, block: int) -> Array:
        """What goes into a block."""
        found = self.recorded(block_input(block))
        if found is not None:
            return found
        if block == 0:
            return np.asarray(self.weights.token_embd[list(self.token_ids)])
        end = self.block(block - 1).known("out")
        assert end is not None
        return np.asarray(end)

    def block(self, number: int) -> BlockRun:
        """A block, each step on what was recorded before it."""
        if number not in self._blocks:
            names = {point.name: block_point(number, point.name) for point in BLOCK_POINTS}
            theirs = {point: x for point, name in names.items() if (x := self.recorded(name)) is not None}
            self._blocks.clear()  # one at a time is in memory
            start = Given(self.start(number))
            weights = self.weights.blocks[number]
            self._blocks[number] = BlockRun(self.flow, number, start, weights, theirs)
        return self._blocks[number]

    @cached_property
    def flow(self) -> Flow:
        """The model's numbers."""
        return Flow(self.config, np.asarray(self.positions), self.dtype)

    def exact(self, name: str) -> Array | None:
        """What a point should be, given what was recorded before it."""
        block, point = split_name(name)
        if block is not None:
            return self.block(block).compute(point)
        if point == "embd":
            return np.asarray(self.weights.token_embd[list(self.token_ids)])
        normed = self.recorded("output_norm") if point == "logits" else None
        if normed is None:
            end = self.start(self.config.n_layers)
            normed = oracle.rms_norm(end, self.weights.output_norm, eps=self.config.rms_norm_eps)
        return np.asarray(normed @ self.weights.output.T) if point == "logits" else normed

    def with_weights_of(self, name: str, other: int) -> Array | None:
        """The same with another block's weights."""
        block, point = split_name(name)
        if block is None:
            return None
        run: Any = replace(self.block(block), weights=self.weights.blocks[other], _computed={}, _floats={})
        found: Array | None = run.compute(point)
        return found

    def parts(self, name: str) -> list[Array] | None:
        """What each rank's part of a sum should be; None where that is not known.

        A bias is in the first rank's.
        """
        block, point = split_name(name)
        n = len(self.pieces.holders(name))
        if point == "embd":
            exact, ids = self.exact(name), np.asarray(self.token_ids)
            assert exact is not None
            shares = self.pieces.shares("vocab", n)
            return [np.where(((ids >= s.start) & (ids < s.stop))[:, None], exact, 0.0) for s in shares]
        if block is None or point not in MATRIX_OF:
            return None
        run = self.block(block)
        given, weight = run.known(INPUT_OF[point]), getattr(run.weights, MATRIX_OF[point][0])
        if given is None:
            return None
        given = np.asarray(given).reshape(len(given), -1)
        bias = self.bias(name)
        owned = self.owned_inputs(name)
        made = [given[:, one.start : one.stop] @ weight[:, one.start : one.stop].T for one in owned]
        return [x + bias if bias is not None and i == 0 else x for i, x in enumerate(made)]

    def bias(self, name: str) -> Array | None:
        """What is added to a sum over ranks, once; None without one."""
        block, point = split_name(name)
        if block is None or point not in MATRIX_OF:
            return None
        found: Array | None = getattr(self.weights.blocks[block], MATRIX_OF[point][1], None)
        return found

    def owned_inputs(self, name: str) -> list[range]:
        """Which inputs of the matrix behind a sum each rank has."""
        block, point = split_name(name)
        assert block is not None
        dim = self.config.head_dim
        sources = [(INPUT_OF[point], 1)]
        sources += [("ffn_gate", 1), ("ffn_up", 1)] if point == "ffn_out" else [("q", dim), ("q_rope", dim)]
        for source, each in sources:
            full = block_point(block, source)
            if full in self.pieces.names and (owned := self.pieces.owned(full)) is not None:
                return [range(one.start * each, one.stop * each) for one in owned]
        n = len(self.pieces.holders(name))
        if point == "ffn_out":
            return self.pieces.shares("ffn", n)
        return [range(one.start * dim, one.stop * dim) for one in self.pieces.shares("head", n)]
