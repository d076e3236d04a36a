"""One block of a program that rounds as it declares: `OwnBlock` with those roundings.

A step is computed on the nearest recorded points, rounded where the program says that it rounds, and held to
what float32's rounding leaves beside that: `declared` says what may fall either way. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.formats import rounded
from llama_ckpt.comparing.block_run import ATTENDED, NORMS, BlockRun
from llama_ckpt.comparing.block_spreads import BlockSpreads, OwnBlock
from llama_ckpt.comparing.declared import Declared, wider, with_falls
from llama_ckpt.judging.spread import RowSums, Spread
from llama_ckpt.oracle.patched_oracle import PatchedOracle
from llama_ckpt.points import ALL_POINTS

__all__ = ["DeclaredBlock"]

Array: TypeAlias = NDArray[Any]
Queries: TypeAlias = slice | NDArray[np.intp]

EVERY: Final = slice(None)


@dataclass(frozen=True, eq=False)
class DeclaredBlock(OwnBlock):
    """A block's points, each step rounded as declared.

    Attributes:
        declared: what is rounded; never None.
    """

    in_parts: ClassVar[bool] = False

    declared: Declared | None = None
    _unrounded: dict[str, Array] = field(default_factory=dict)

    @property
    def by(self) -> Declared:
        """What is rounded."""
        assert self.declared is not None
        return self.declared

    def declaring(self, declared: Declared) -> Self:
        """The same block with other roundings."""
        return self._anew(declared=declared)

    def _made(self, point: str) -> Array:
        self._unrounded[point] = self._attended(point) if point in ATTENDED else self._stepped(point)
        return rounded(self._unrounded[point], self.by.result(point))

    def unrounded(self, point: str) -> Array | None:
        """A point before its result is rounded."""
        self.compute(point)
        return self._unrounded.get(point)

    def _stepped(self, point: str) -> Array:
        read, oracle = self.read(point), self.by.before
        made: Array
        if point in NORMS:
            made = oracle.rms_norm(read[0], self.weight(point), eps=self.flow.config.rms_norm_eps)
        elif self.is_product(point):
            product = oracle.to_stream if point in ("attn_out", "ffn_out") else oracle.linear
            made, heads = product(read[0], self.weight(point)), self._heads(point)
            if (bias := self.bias(point)) is not None:
                made = made + bias
            made = made if heads is None else made.reshape(len(made), heads, -1)
        elif point in ("q_rope", "k_rope"):
            turn = {"frequencies": self.frequencies, "magnitude": oracle.rope_magnitude(self.flow.config)}
            made = oracle.rope(read[0], read[0][:, :0], self.flow.positions, **turn)[0]
        elif point == "ffn_swiglu":
            made = oracle.gated(read[0], read[1])
        elif ALL_POINTS[point].function == "add":
            made = oracle.added(read[0], read[1])
        else:
            made = self._by_its_function(point)
        return made

    def _attended(self, point: str) -> Array:
        made = [self._of_heads(point, head) for head in range(self.flow.config.n_kv_heads)]
        stacked = np.concatenate(made).transpose(1, 0, 2)  # [n, heads, keys or head_dim]
        return stacked.reshape(len(stacked), -1) if point == "attn_context" else stacked

    def beside(self, point: str, x: Array) -> Iterator[tuple[Array, Array]]:
        """A point of attention a key head at a time, x and what it should be: `[heads, n, …]` each.

        Args:
            x: theirs, of the point's shape.
        """
        for head in range(self.flow.config.n_kv_heads):
            yield self.beside_queries(point, x, head, EVERY)

    def beside_queries(self, point: str, x: Array, kv_head: int, queries: Queries) -> tuple[Array, Array]:
        """Of one key head's query heads some queries, as `beside` gives them all: `[heads, queries, …]`."""
        by_head = x.reshape(len(x), self.flow.config.n_heads, -1)
        made = rounded(self._of_heads(point, kv_head, queries), self.by.result(point))
        return self.part_of(point, by_head, kv_head)[:, queries], made

    def heads_of(self, point: str, kv_head: int) -> Array:
        """What of a point belongs to a key head, heads first: `[heads, n, …]`."""
        # Of what was recorded no more is made float64 than is asked for: scores are large.
        x = self.theirs.get(point) if ALL_POINTS[point].causal else self.known(point)
        x = self.known(point) if x is None else x
        assert x is not None
        return self.part_of(point, x, kv_head)

    def part_of(self, point: str, array: Array, kv_head: int) -> Array:
        """The same of any array of a point's shape."""
        group = self.flow.config.n_heads // self.flow.config.n_kv_heads
        some = 1 if point in ("k_rope", "v") else group
        part = array[:, kv_head * some : (kv_head + 1) * some]
        return np.asarray(part, np.float64).transpose(1, 0, 2)

    def _of_heads(self, point: str, kv_head: int, queries: Queries = EVERY) -> Array:
        """A part of attention for the query heads of one key head: memory holds their scores alone."""
        oracle = self.by.before
        if point == "attn_context" and "attn_probs" in self.theirs:
            probs = self.heads_of("attn_probs", kv_head)[:, queries]
            return np.asarray(oracle.mixed(probs, self.heads_of("v", kv_head)))
        q = self.heads_of("q_rope", kv_head)[:, queries]
        if point != "attn_scores" and "attn_scores" in self.theirs:
            scores = self.heads_of("attn_scores", kv_head)[:, queries]
        else:
            scores = oracle.scores(q, self.heads_of("k_rope", kv_head))
            if point == "attn_scores":
                return np.asarray(scores)
            scores = rounded(scores, self.by.result("attn_scores"))
        visible = oracle.visible(self.flow.positions, None)[queries]
        probs = oracle.probabilities(np.where(visible, oracle.scaled(scores, q.shape[-1]), -np.inf))
        if point == "attn_probs":
            return np.asarray(probs)
        probs = rounded(probs, self.by.result("attn_probs"))
        return np.asarray(oracle.mixed(probs, self.heads_of("v", kv_head)))

    @property
    def spreads(self) -> DeclaredSpreads:
        """By neutral name."""
        return DeclaredSpreads(self, self._spread_of, self._attention)

    @property
    def base(self) -> PatchedOracle:
        """The oracle that rounds as declared."""
        return self.by.oracle

    def costs(self, point: str) -> float:
        """How far the roundings put a point from the exact one on the same inputs, relative."""
        exact = BlockRun._attended(self, point) if point in ATTENDED else super()._made(point)
        o = self.compute(point)
        norm = float(np.linalg.norm(exact))
        return float(np.linalg.norm(o - exact)) / norm if o is not None and norm else 0.0

    def forget(self) -> None:
        """The same, and of what was not rounded yet."""
        super().forget()
        self._unrounded.clear()

    def _anew(self, **changed: Any) -> Self:
        fresh: dict[str, Any] = {
            "_computed": {},
            "_floats": {},
            "_ties": {},
            "_spread_of": {},
            "_attention": [],
        }
        return replace(self, **changed, **fresh, _unrounded={})


@dataclass(frozen=True, eq=False)
class DeclaredSpreads(BlockSpreads):
    """What float32's rounding may leave, and what may fall to another neighbour."""

    def _spread(self, point: str) -> Spread | None:
        made, y, run = super()._spread(point), self.run.compute(point), self._block
        if made is None or y is None:
            return None
        if run.is_product(point):
            common = run.by.in_common(run.weight(point), stream=point in ("attn_out", "ffn_out"))
            made = replace(made, everywhere=float(np.hypot(made.everywhere, common)))
        if point in ("q_rope", "k_rope"):
            made = replace(made, everywhere=float(np.hypot(made.everywhere, run.by.turn_in_common())))
        if made.angles is not None:
            apart = run.by.turns_apart(run.flow.positions, run.frequencies)
            made = made if apart is None else replace(made, angles=made.angles.off_by(apart))
        spread = with_falls(wider(made, self._ties(point), y), self._together(point, y))
        unrounded = run.unrounded(point)
        if unrounded is None:
            return spread
        either = run.by.result_ties(point, unrounded, spread)
        return wider(spread, either, y)

    def _together(self, point: str, y: Array) -> RowSums | None:
        """Of what moves all elements of a row at once."""
        run = self._block
        if not run.is_product(point):
            return None
        weight, stream = run.weight(point), point in ("attn_out", "ffn_out")
        return run.by.falls_together(run.read(point)[0], weight, y, stream=stream)

    def _ties(self, point: str) -> Array | None:
        """Of what is rounded before it goes into the step, or inside it."""
        run = self._block
        by, flow = run.by, run.flow
        if point in ATTENDED:
            parts = [self._head_ties(point, head) for head in range(flow.config.n_kv_heads)]
            found = [part for part in parts if part is not None]
            if not found:
                return None
            none = np.zeros_like(found[0])
            stacked = np.concatenate([none if part is None else part for part in parts]).transpose(1, 0, 2)
            return stacked.reshape(len(stacked), -1) if point == "attn_context" else stacked
        read, off = run.read(point), [self._off_of(one) for one in flow.reads(point)]
        if point in NORMS:
            return by.norm_ties(read[0], off[0], np.asarray(run.weight(point)), flow.config.rms_norm_eps)
        if point in ("q_rope", "k_rope"):
            return by.turn_ties(read[0], off[0], flow.positions, run.frequencies)
        if point == "ffn_swiglu":
            return by.gate_ties(read[0], read[1], off[0])
        if not run.is_product(point):
            return None
        stream = point in ("attn_out", "ffn_out")
        ties, y = by.product_ties(read[0], off[0], run.weight(point), stream=stream), run.compute(point)
        return None if ties is None or y is None else ties.reshape(y.shape)

    def _head_ties(self, point: str, kv_head: int) -> Array | None:
        """For the query heads of one key head, `[heads, n, …]`."""
        run = self._block
        if point == "attn_scores":
            q, k = run.heads_of("q_rope", kv_head), run.heads_of("k_rope", kv_head)
            found = run.by.score_ties(q, k, self._off_of("q_rope", kv_head), self._off_of("k_rope", kv_head))
            shape = (len(q), q.shape[1], k.shape[1])
        elif point == "attn_probs":
            scores, probs = run.heads_of("attn_scores", kv_head), run.heads_of("attn_probs", kv_head)
            came = self._fell("attn_scores", kv_head)
            found, shape = run.by.probability_ties(scores, run.flow.config.head_dim, probs, came), probs.shape
        else:
            probs, v = run.heads_of("attn_probs", kv_head), run.heads_of("v", kv_head)
            off = self._off_of("attn_probs", kv_head), self._off_of("v", kv_head)
            found = run.by.mixing_ties(probs, v, *off, self._fell("attn_probs", kv_head))
            shape = (*probs.shape[:2], v.shape[-1])
        return None if found is None else np.broadcast_to(found, shape)

    def _fell(self, point: str, kv_head: int) -> Array | None:
        """How far a point of attention that was not recorded may be off by what fell in it or before it.

        Of float32's own rounding the attention takes care, whose scores and probabilities are its own.
        """
        spread = None if point in self._block.theirs else self.off(point)
        if spread is None or spread.most is None:
            return None
        return self._block.part_of(point, spread.most, kv_head)

    def _off_of(self, point: str, kv_head: int | None = None) -> Array | None:
        """How far a point that was not recorded may be off, of one key head's or of all."""
        spread = None if point in self._block.theirs else self.off(point)
        if spread is None or kv_head is None:
            return None if spread is None else spread.whole
        return self._block.part_of(point, spread.whole, kv_head)

    @property
    def _block(self) -> DeclaredBlock:
        assert isinstance(self.run, DeclaredBlock)
        return self.run
