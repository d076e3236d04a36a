"""What is right in a dump but written down differently, put right before anything is judged.

RoPE's pairs in halves, a norm recorded before its weight, layers under a neighbour's number: else one such
habit would be reported as an error of every point after it. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from types import MappingProxyType
from typing import Any

import numpy as np

from llama_ckpt.comparing.block_run import BlockRun, Given
from llama_ckpt.comparing.block_spreads import OwnBlock
from llama_ckpt.comparing.comparison import LintFinding
from llama_ckpt.comparing.dataflow import Flow
from llama_ckpt.comparing.declared_block import DeclaredBlock
from llama_ckpt.comparing.declared_head import DeclaredHead
from llama_ckpt.comparing.head_run import HeadRun
from llama_ckpt.comparing.noisy_run import NoisyRun
from llama_ckpt.comparing.own_run import OwnRun
from llama_ckpt.comparing.recorded_early import was_read_without, with_weight
from llama_ckpt.comparing.shifts import Ends, find_shift
from llama_ckpt.comparing.walk_points import SAME, TURNED, Array, PointJudge
from llama_ckpt.dumps.names_map import interleave_halves, pair_kind
from llama_ckpt.judging.near_ties import UNKNOWN, Choosing, is_choice
from llama_ckpt.judging.rounded_run import RoundedRun
from llama_ckpt.judging.verdict import judge
from llama_ckpt.points import block_point, split_name

__all__ = ["Settling"]

NEARLY = 0.05
"""A tensor that is off in either order lies in the one in which no more than this is left of it and of its
error in the other: what is off besides is small, and no bug leaves another order of features by chance."""


@dataclass
class Settling(PointJudge):
    """A block of theirs as it is meant, and the same block computed on it."""

    first_block: OwnBlock | None = None
    """The exact run of block 0, where it was made to look for shifts."""

    @cached_property
    def flow(self) -> Flow:
        """What steps are computed with."""
        sides = self.sides
        return Flow(sides.config, np.asarray(sides.positions, np.int64), sides.dtype, sides.n_used)

    def block_on(
        self,
        number: int,
        given: Given,
        weights: Any,
        theirs: Mapping[str, Array],
        choosing: Choosing = UNKNOWN,
    ) -> OwnBlock:
        """A block in float64 on what goes in and what they recorded; rounded as they declare."""
        if self.declared is None or weights is None:
            return OwnBlock(self.flow, number, given, weights, theirs, choosing)
        return DeclaredBlock(self.flow, number, given, weights, theirs, declared=self.declared)

    def head_on(self, given: Given, theirs: Mapping[str, Array], *, last: bool = False) -> HeadRun:
        """The same of the last norm and the logits."""
        sides = self.sides
        shared = given, sides.weights, sides.config, sides.dtype, theirs
        if self.declared is None or sides.weights is None:
            return HeadRun(*shared, last=last)
        return DeclaredHead(*shared, last=last, declared=self.declared)

    def run_from(
        self, start: Array, first: int = 0, *, chosen: Mapping[int, Array] = MappingProxyType({})
    ) -> RoundedRun | NoisyRun:
        """A run that rounds at random, from what goes into a block on.

        Args:
            chosen: by block the experts that it goes through, where that is known.
        """
        sides, at = self.sides, self.flow.positions
        if self.declared is None:
            return RoundedRun(start, sides.weights, sides.config, at, sides.dtype, first, chosen)
        by = self.declared
        return NoisyRun(start, sides.weights, sides.config, at, by.arithmetic, by.weight_type, first=first)

    def _find_shifts(self, embedding: Array | None) -> None:
        """Points whose tensors stand under the number of the block before or after.

        Each of their first ends is held against the right ends of both neighbours. `take` then reads every
        later block under the number that it should have.
        """
        # Block 1, as it has a neighbour on either side; a dump without it is not searched.
        recorded = [p for p in ("out", "attn_norm") if block_point(1, p) in self.sides.theirs.names]
        runs = self._first_runs(embedding)
        for point in recorded:
            right = self._right_ends(point, embedding, runs)
            theirs = cache(partial(self._their_end, point, right))
            shift = find_shift(theirs, right, SAME)
            if shift is not None:
                self.shifts[point] = shift
                first = next(block_point(b, point) for b in right if b >= 0 and theirs(b) is not None)
                whose = "next" if shift == 1 else "previous"
                message = f"layers are shifted by one: {first} and the others hold the {whose} block's tensor"
                hint = "number blocks from 0 by what goes out of them, or say first_block in --map"
                self.result.findings.append(LintFinding("layers_shifted", first, message, hint))

    def _their_end(self, point: str, right: Mapping[int, Array], block: int) -> Array | None:
        """Theirs under the number of a block; None without one."""
        name = block_point(block, point)
        x = self.take(name, partial(right.get, block)) if name in self.sides.theirs.names else None
        # NaN equals nothing: it would say of a shifted dump that it is not.
        return x if x is not None and np.isfinite(x).all() else None

    def _right_ends(
        self, point: str, embedding: Array | None, runs: Callable[[int], BlockRun]
    ) -> Mapping[int, Array]:
        """What a point of the first blocks should be, from whoever knows it, `[n, width]` float64.

        Of block -1 the embedding, what an end shifted by one would hold.
        """
        # Four blocks are enough to see a displacement.
        first = range(min(4, self.sides.n_layers))
        if self.sides.weights is None or embedding is None:
            found = {b: r for b in first if (r := self._reference(block_point(b, point))) is not None}
            return found if point != "out" or embedding is None else {-1: embedding, **found}

        def make(block: int) -> Array:
            return embedding if block < 0 else runs(block)[point]

        return Ends((*((-1,) if point == "out" else ()), *first), make)

    def _first_runs(self, embedding: Array | None) -> Callable[[int], BlockRun]:
        """The exact runs of the first blocks, each made once."""
        weights = self.sides.weights

        @cache
        def run(block: int) -> BlockRun:
            assert weights is not None
            start = embedding if block == 0 else run(block - 1)["out"]
            if block == 0 and self.declared is None and not self.flow.experts:
                self.first_block = self.block_on(0, Given(start), weights.blocks[0], {})
                return self.first_block
            return BlockRun(self.flow, block, Given(start), weights.blocks[block], {})

        return run

    def theirs_of(self, number: int, right: Mapping[str, Array]) -> dict[str, Array]:
        """What they recorded of a block, by neutral name."""
        found = {}
        for point in self.data_flow.inside:
            x = self.take(block_point(number, point), partial(right.get, point))
            if x is not None:
                found[point] = x
        return self._likeliest_first(found) if self.flow.experts else found

    def _likeliest_first(self, theirs: dict[str, Array]) -> dict[str, Array]:
        """The chosen experts put in the order of their weights, where a program lists them in another one.

        Their sum is the same. Where the weights do not lie in that other order too, it is no order but a bug.
        """
        chosen, weights = theirs.get("ffn_chosen"), theirs.get("ffn_weights")
        if chosen is None or weights is None or not np.isfinite(weights).all():
            return theirs
        order = np.argsort(-weights, axis=1, kind="stable")
        by_number = bool((np.diff(chosen, axis=1) > 0).all())
        if not by_number or (order == np.arange(order.shape[1])).all():
            return theirs
        self._note("ffn_chosen", "a token's experts are listed by their numbers: put the likeliest first")
        wide = theirs.get("ffn_expert_out")
        found = {
            **theirs,
            **{p: np.take_along_axis(theirs[p], order, 1) for p in ("ffn_chosen", "ffn_weights")},
        }
        return (
            found
            if wide is None
            else found | {"ffn_expert_out": np.take_along_axis(wide, order[..., None], 1)}
        )

    def choosing(self, number: int, exact: OwnBlock) -> Choosing:
        """What is known of a block's choice in the exact run: theirs, and what scores may be off by.

        `exact` is that block without it. Scores of a whole run may be off by what its rounding comes to;
        theirs are as far off as they are.
        """
        router = exact.get("ffn_router") if self.flow.experts else None
        if router is None:
            return Choosing()
        limit = self._limit(block_point(number, "ffn_router"), "total")
        off = limit.row_err * np.linalg.norm(router, axis=1)
        x = self.take(block_point(number, "ffn_router"), lambda: router)
        made = any(point.made in ("here", "between") for point in self.result.points)
        if x is not None and not made and x.shape == router.shape and np.isfinite(x).all():
            off = np.maximum(off, np.abs(x - router).max(axis=1))
        theirs = self.theirs_of(number, exact).get("ffn_chosen")
        if theirs is not None and not is_choice(theirs, router.shape[1]).all():
            theirs = None
        return Choosing(theirs, off)

    def settle(
        self, number: int, theirs: dict[str, Array], given: Given, weights: Any, right: Mapping[str, Array]
    ) -> tuple[dict[str, Array], OwnBlock]:
        """Recognize what was only written differently; the block as it is meant, and computed on that."""
        # A tensor with a NaN is no input to judge a step by: the next nearest ones that they recorded are.
        reliable = self.reliable(theirs)
        run = self.block_on(number, given, weights, reliable, Choosing(reliable.get("ffn_chosen")))
        # The pairs first: norms are repaired by what q and k say of them, which has to be in our order by
        # then.
        if self.half_split is None and self._is_half_split(number, theirs, run, right):
            theirs = self.theirs_of(number, right)
            run = run.on(self.reliable(theirs))
        if weights is None:
            return theirs, run
        for point in ("attn_norm", "ffn_norm"):
            name, weight = block_point(number, point), getattr(weights, point)
            repaired = self.recorded_early(name, theirs, run, weight, run.on)
            if repaired is not None:
                theirs[point] = repaired
                run = run.on(self.reliable(theirs))
        return theirs, run

    def recorded_early(
        self,
        name: str,
        theirs: Mapping[str, Array],
        run: OwnRun,
        weight: Array,
        on: Callable[[Mapping[str, Array]], OwnRun],
    ) -> Array | None:
        """A norm that was recorded before its weight: with its weight; None where it was not.

        Args:
            name: of the norm; theirs: their tensors by neutral name.
            run: on these; on: the same on others.
            weight: of the norm, `[width]`.
        """
        point = split_name(name)[1]
        x, o = theirs.get(point), run.get(point)
        if x is None or o is None:
            return None
        limit = self._limit(name, "total" if run.is_far(point) else "own")
        repaired = with_weight(x, o, weight, limit)
        if repaired is None:
            return None
        meant = on(self.reliable({**theirs, point: repaired}))
        if was_read_without(self.reliable(theirs), run, meant, point):
            return None
        message = f"{name} was recorded before its weight was multiplied in"
        hint = "record what the norm hands on, after its weight"
        self._once(LintFinding("norm_before_weight", name, message, hint))
        return repaired

    def _is_half_split(
        self, number: int, theirs: Mapping[str, Array], run: OwnRun, right: Mapping[str, Array]
    ) -> bool:
        """Whether q and k lie in half-split order; decided at the first block whose tensors tell.

        Once for the whole dump: a layout does not change between blocks, and a wrong block must not look like
        one.
        """
        nearer = []
        for point in TURNED:
            o = run.get(point)
            o = right.get(point) if o is None else o
            x = theirs.get(point)
            if x is None or o is None or x.shape != o.shape or not np.isfinite(x).all():
                continue
            # Taken for half-split only if it fails as it stands and passes reordered. A smaller error alone
            # would not do: a bug that happens to be nearer reordered would be called a layout.
            limit = self._limit(block_point(number, point), "total")
            plain = judge(point, x, o, limit=limit, dtype=limit.dtype)
            halves = judge(point, interleave_halves(x), o, limit=limit, dtype=limit.dtype)
            if "pass" in (plain.verdict, halves.verdict):
                return self._take_half_split(plain.verdict == "fail", number, theirs)
            nearer.append(halves.err < NEARLY and halves.err < NEARLY * plain.err)
        if "q" in theirs and "q_rope" in theirs:
            # Wrong in either order; what RoPE turned says which was meant.
            kind = pair_kind(theirs["q"], theirs["q_rope"], self.sides.positions)
            return self._take_half_split(kind == "half-split", number, theirs)
        return self._take_half_split(any(nearer), number, theirs)

    def _take_half_split(self, half_split: bool, number: int, theirs: Mapping[str, Array]) -> bool:
        self.half_split = half_split
        if half_split:
            self._say_half_split(number, theirs)
        return half_split

    def _say_half_split(self, number: int, theirs: Mapping[str, Array]) -> None:
        """State the layout; where RoPE turns other pairs than the weights are laid out for, that is a bug."""
        self.result.notes.append(
            "q and k lie in half-split order, pairs (i, i + head_dim/2), as Hugging Face has them: undone"
        )
        for before, after in (("q", "q_rope"), ("k", "k_rope")):
            if before in theirs and after in theirs:
                # Another order of rows in wq and wk is harmless only if RoPE turns pairs in that same order.
                kind = pair_kind(theirs[before], theirs[after], self.sides.positions)
                if kind == "neighbours":
                    name = block_point(number, after)
                    message = f"{name}: weights in half-split order, but RoPE turns neighbours (2i, 2i+1)"
                    hint = "turn pairs (i, i + head_dim/2), or load weights in GGUF's order"
                    self.result.findings.append(LintFinding("mixed_layout", name, message, hint))
                return
