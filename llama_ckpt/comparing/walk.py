"""Going through somebody's dump in the order of the data's flow, one block in memory at a time.

A dump's error has two parts that look alike in a tensor: what was done wrong in the step that made it, and
what came in with its inputs. To tell them apart each block is computed three times in float64:

    exact   from the tokens on, with nothing of theirs: their distance from it is the `total` error
    flow    each step on the inputs that they recorded: the distance is the step's `own` error
    whole   the block on what went into theirs: how much of the error at its end came in with that

The walk goes in the order of the data, and hands on from block to block two vectors a token: what should go
into the next block, and what does by their dump. One block's weights and tensors are in memory at a time; a
float64 7B would not fit. Without weights (dumps of theirs against recorded ones) the recording stands in for
`exact`.

Before anything is judged, what is right but written down differently is put right: RoPE's pairs in halves, a
norm recorded before its weight, layers under a neighbour's number. Else one such habit would be reported as
an error of every point after it. numpy only, so that comparing starts fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_ckpt.comparing.comparison import LintFinding
from llama_ckpt.comparing.dataflow import BlockFlow, Flow, whole_block
from llama_ckpt.comparing.lint import find_shift
from llama_ckpt.comparing.recorded_early import without_weight
from llama_ckpt.comparing.walk_points import ENDS, SAME, TURNED, Array, PointJudge
from llama_ckpt.diagnose.named import Evidence
from llama_ckpt.dumps.names_map import interleave_halves, pair_kind
from llama_ckpt.judging.rounded_run import RoundedRun
from llama_ckpt.judging.rounding import case_spreads, product_spread
from llama_ckpt.judging.verdict import judge
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import KEPT_BYTES
from llama_ckpt.points import BLOCK_POINTS, Case, block_point, split_name

__all__ = ["Walk"]


@dataclass
class Walk(PointJudge):
    """One walk through a dump; fills a `Comparison`."""

    def run(self) -> None:
        """Judge every tensor that is there."""
        # The order matters: what a block reads must have been judged, or repaired, before it; shifts are
        # looked for first, as a shifted dump would fail in each block; the whole model comes last, since it
        # needs all the ends.
        sides = self.sides
        self.flow = Flow(sides.config, np.asarray(sides.positions, np.int64), sides.dtype)
        exact = self._exact_embedding()
        if sides.weights is not None and exact is not None:
            self.rounded = RoundedRun(exact, sides.weights, sides.config, self.flow.positions, sides.dtype)
        start = self._embedding(exact)
        self._find_shifts(exact)
        for number in range(sides.n_layers):
            if self.progress:
                self.progress(f"block {number}", number, sides.n_layers)
            exact, start = self._block(number, exact, start)
        self._head(exact, start)
        self.explainer.explain_whole(self._whole_model())

    def _whole_model(self) -> list[Evidence]:
        """The ends of the blocks as answers of one call of the whole model; of a small model only."""
        sides = self.sides
        if sides.weights is None or sides.file is None or not self.ends:
            return []
        # All weights at once in float64, 8 bytes each: of a 7B that is 54 GB.
        if 8 * sum(math.prod(info.shape) for info in sides.file.tensors.values()) > KEPT_BYTES:
            return []
        names = [block_point(block, "out") for block in range(sides.n_layers)] + list(ENDS[:2])
        arguments = {
            "token_ids": np.asarray(sides.token_ids),
            "weights": sides.weights,
            "config": sides.config,
            "positions": self.flow.positions,
        }
        case = Case("logits", arguments, ("logits",), {name: name for name in names})
        return [
            Evidence(name, x, o, self._limit(name, "total"), case)
            for name, (x, o) in self.ends.items()
            if x.shape == o.shape
        ]

    def _find_shifts(self, embedding: Array | None) -> None:
        """Points whose tensors stand under the number of the block before or after.

        Each of their first ends is held against the right ends of both neighbours. `take` then reads every
        later block under the number that it should have.
        """
        right = self._right_ends(embedding)
        if not right:
            return
        for point, ends in right.items():
            theirs = {}
            for block in sorted(b for b in ends if b >= 0):
                name = block_point(block, point)
                if name in self.sides.theirs.names:
                    x = self.take(name, lambda e=ends[block]: e)  # type: ignore[misc]
                    # NaN equals nothing: it would say of a shifted dump that it is not.
                    if x is not None and np.isfinite(x).all():
                        theirs[block] = x
            shift = find_shift(theirs, ends, SAME)
            if shift is not None:
                self.shifts[point] = shift
                first = block_point(min(theirs), point)
                whose = "next" if shift == 1 else "previous"
                message = f"layers are shifted by one: {first} and the others hold the {whose} block's tensor"
                hint = "number blocks from 0 by what goes out of them, or say first_block in --map"
                self.result.findings.append(LintFinding("layers_shifted", first, message, hint))

    def _right_ends(self, embedding: Array | None) -> dict[str, dict[int, Array]]:
        """What the ends (and first norms) of the first blocks should be, from whoever knows them.

        Float64 [n, width] by point and block; block -1 is the embedding, what an end shifted by one would
        hold.
        """
        # Four blocks are enough to see a displacement, and each is computed once more for it.
        n = min(4, self.sides.n_layers)
        right: dict[str, dict[int, Array]] = {"out": {}, "attn_norm": {}}
        if embedding is not None:
            right["out"][-1] = embedding
        x, weights = embedding, self.sides.weights
        # Block 1, as it has a neighbour on either side; a dump without it is not searched.
        recorded = [p for p in right if block_point(1, p) in self.sides.theirs.names]
        if not recorded:
            return {}
        for block in range(n):
            if weights is not None and x is not None:
                found = whole_block(self.flow.block_case(block, x, weights.blocks[block]))
                x = found["out"]
            else:
                found = {p: r for p in right if (r := self._reference(block_point(block, p))) is not None}
            for point in right:
                if point in found:
                    right[point][block] = found[point]
        return {point: right[point] for point in recorded if len(right[point]) > 1}

    # -- outside the blocks -------------------------------------------------------------------------

    def _exact_embedding(self) -> Array | None:
        sides = self.sides
        if sides.weights is None:
            return self._reference("embd")
        # A row at a time: the table has 32,000 of them, and a prompt needs a few.
        table = sides.file.float32 if sides.file else None
        assert table is not None
        rows = [table("token_embd.weight", slice(token, token + 1))[0] for token in sides.token_ids]
        return np.asarray(rows, np.float64)

    def _embedding(self, exact: Array | None) -> Array | None:
        """Judge `embd`; what goes into the first block."""
        x = self.take("embd", lambda: exact)
        if x is None:
            return exact if self.sides.weights is not None else None
        if exact is not None:
            cases = {}
            if self.sides.weights is not None and not np.array_equal(x, exact):
                # The whole table, which is large, only where it is asked what went wrong.
                arguments = {"token_ids": self.sides.token_ids, "weight": self.sides.weights.token_embd}
                cases["embd"] = Case("embed", arguments, ("embd",))
            flow = BlockFlow({"embd": exact}, cases, {}, {"embd": ()})
            self._judge_step({"embd": x}, {"embd": exact}, flow, None, None)
        # A NaN would go into every step after it and hide what is wrong there: the walk goes on with the
        # right one.
        return x.astype(np.float64) if np.isfinite(x).all() else exact

    def _head(self, exact: Array | None, start: Array | None) -> None:
        """Judge `output_norm` and `logits`.

        Args:
            exact: what should come out of the last block, float64 [n, width]; None where nobody knows.
            start: what does by their dump.
        """
        weights = self.sides.weights
        names = ("output_norm", "logits")
        right: dict[str, Array] = {}
        if weights is not None and exact is not None:
            right["output_norm"] = oracle.rms_norm(exact, weights.output_norm, eps=self._eps)
            right["logits"] = right["output_norm"] @ weights.output.T
        else:
            right = {name: r for name in names if (r := self._reference(name)) is not None}
        theirs = {n: x for n in names if (x := self.take(n, lambda n=n: right.get(n))) is not None}  # type: ignore[misc]
        # As in `_settle`: put right what was recorded before its weight, then compute again what reads it.
        flow = self._head_flow(theirs, start)
        if weights is not None and "output_norm" in theirs and "output_norm" in flow.computed:
            repaired = self._recorded_early(
                "output_norm", theirs, flow, weights.output_norm, {"logits": weights.output}
            )
            if repaired is not None:
                theirs["output_norm"] = repaired
                flow = self._head_flow(theirs, start)
        self._judge_step(theirs, right, flow, None, None)
        if "logits" in theirs:
            self.result.tokens += self.explainer.choices(
                theirs["logits"],
                right.get("logits") if weights is not None else None,
                self._reference("logits"),
                self._limit("logits", "total"),
            )

    @property
    def _eps(self) -> float:
        assert self.sides.config is not None
        return self.sides.config.rms_norm_eps

    def _head_flow(self, theirs: Mapping[str, Array], start: Array | None) -> BlockFlow:
        """The head on their last block's end, and the product alone on their own norm."""
        flow, weights = BlockFlow(), self.sides.weights
        if weights is None or start is None:
            return flow
        last = block_point(self.sides.n_layers - 1, "out")
        arguments = {"x": start, "weights": weights, "config": self.sides.config}
        case = Case("output_logits", arguments, ("logits",), {"output_norm": "output_norm"})
        normed = oracle.rms_norm(start, weights.output_norm, eps=self._eps)
        # Logits are asked of their own norm where there is one, so that an error in the norm is not counted
        # twice; where there is none, of the norm of their last block, and `replaced` says so to whoever
        # explains.
        own = theirs.get("output_norm")
        usable = own is not None and np.isfinite(own).all()
        read = np.asarray(own, np.float64) if usable else normed
        flow.computed.update({"output_norm": normed, "logits": read @ weights.output.T})
        carried = {} if self.start_spread is None else {"x": self.start_spread}
        dtype = self.sides.dtype
        flow.spreads.update(case_spreads("output_logits", arguments, flow.computed, dtype, carried=carried))
        if usable:
            logits = flow.computed["logits"]
            flow.spreads["logits"] = product_spread(read, weights.output, logits, dtype)
        flow.cases.update({"output_norm": case, "logits": case})
        flow.read.update({"output_norm": (last,), "logits": ("output_norm",)})
        flow.replaced.update({"output_norm": (), "logits": () if usable else ("output_norm",)})
        return flow

    # -- one block ----------------------------------------------------------------------------------

    def _block(
        self, number: int, exact_in: Array | None, start: Array | None
    ) -> tuple[Array | None, Array | None]:
        """Judge a block's points; what goes into the next one, exactly and by theirs.

        Args:
            number: which block.
            exact_in: what should go in, float64 [n, width]; None where nobody knows.
            start: what went in by their dump.
        """
        weights = self.sides.weights.blocks[number] if self.sides.weights is not None else None
        right: dict[str, Array] = {}
        if weights is not None and exact_in is not None:
            right = whole_block(self.flow.block_case(number, exact_in, weights))
        else:
            for point in BLOCK_POINTS:
                if (r := self._reference(block_point(number, point.name))) is not None:
                    right[point.name] = r
        # Settled before it is judged: the verdict is of tensors in our order, with their weights in.
        theirs = self._theirs_of(number, right)
        flow = self._flow(number, theirs, start, weights)
        theirs, flow = self._settle(number, theirs, flow, start, weights, right)
        # While their input is the exact one, both runs of the block are the same, and it is computed once.
        from_input, whole = right, None
        if weights is not None and start is not None:
            case = self.flow.block_case(number, start, weights)
            from_input = right if start is exact_in else whole_block(case)
            whole = case, from_input
        self._judge_step(theirs, right, flow, number, whole)
        # What goes on into the next block is their end, wrong as it may be: the next block's own error is
        # what it adds to that. Where they recorded none, or NaN, what the steps on their nearest inputs give.
        end, self.start_spread = theirs.get("out"), None
        if end is None or not np.isfinite(end).all():
            end = flow.computed.get("out")
            self.start_spread = flow.spreads["out"].whole if "out" in flow.spreads else None
        if weights is not None:
            self._layer(
                number,
                exact_in,
                start,
                right["out"],
                from_input["out"],
                end,
                None if whole is None else whole[0],
            )
        elif "out" in right and end is not None:
            self._layer(number, None, None, right["out"], None, end)
        next_exact = right.get("out")
        return next_exact, None if end is None else np.asarray(end, np.float64)

    def _theirs_of(self, number: int, right: Mapping[str, Array]) -> dict[str, Array]:
        found = {}
        for point in BLOCK_POINTS:
            x = self.take(block_point(number, point.name), lambda p=point.name: right.get(p))  # type: ignore[misc]
            if x is not None:
                found[point.name] = x
        return found

    def _flow(self, number: int, theirs: Mapping[str, Array], start: Array | None, weights: Any) -> BlockFlow:
        # Steps are computed in float64 whatever the dump's type, so that only their rounding is in the error.
        # A tensor with a NaN is no input to judge a step by: the next nearest ones that they recorded are.
        usable = {point: np.asarray(x, np.float64) for point, x in theirs.items() if np.isfinite(x).all()}
        return self.flow.block(number, usable, start, weights, self.start_spread)

    def _settle(
        self,
        number: int,
        theirs: dict[str, Array],
        flow: BlockFlow,
        start: Array | None,
        weights: Any,
        right: Mapping[str, Array],
    ) -> tuple[dict[str, Array], BlockFlow]:
        """Recognize what was only written differently, and compute again with it put right."""
        # The pairs first: norms are repaired by what q and k say of them, which has to be in our order by
        # then.
        if self.half_split is None and self._is_half_split(number, theirs, flow, right):
            theirs = self._theirs_of(number, right)
            flow = self._flow(number, theirs, start, weights)
        if weights is None:
            return theirs, flow
        # `readers` are the products that read the norm: they tell a norm recorded too early from one that is
        # wrong.
        for point, weight, readers in (
            ("attn_norm", weights.attn_norm, {"q": weights.wq, "k": weights.wk, "v": weights.wv}),
            ("ffn_norm", weights.ffn_norm, {"ffn_gate": weights.w_gate, "ffn_up": weights.w_up}),
        ):
            repaired = self._recorded_early(block_point(number, point), theirs, flow, weight, readers)
            if repaired is not None:
                theirs[point] = repaired
                flow = self._flow(number, theirs, start, weights)
        return theirs, flow

    def _recorded_early(
        self,
        name: str,
        theirs: Mapping[str, Array],
        flow: BlockFlow,
        weight: Array,
        readers: Mapping[str, Array],
    ) -> Array | None:
        """A norm that was recorded before its weight: with its weight; None where it was not."""
        point = split_name(name)[1]
        x, o = theirs.get(point), flow.computed.get(point)
        if x is None or o is None:
            return None
        repaired = without_weight(x, o, weight, theirs, readers, self._limit(name, "own"))
        if repaired is not None:
            message = f"{name} was recorded before its weight was multiplied in"
            hint = "record what the norm hands on, after its weight"
            self._once(LintFinding("norm_before_weight", name, message, hint))
        return repaired

    def _is_half_split(
        self, number: int, theirs: Mapping[str, Array], flow: BlockFlow, right: Mapping[str, Array]
    ) -> bool:
        """Whether q and k lie in half-split order; decided at the first block that has one of them.

        Once for the whole dump: a layout does not change between blocks, and a wrong block must not look like
        one.
        """
        for point in TURNED:
            o = flow.computed.get(point, right.get(point))
            x = theirs.get(point)
            if x is None or o is None or x.shape != o.shape or not np.isfinite(x).all():
                continue
            # Taken for half-split only if it fails as it stands and passes reordered. A smaller error alone
            # would not do: a bug that happens to be nearer reordered would be called a layout.
            limit = self._limit(block_point(number, point), "total")
            plain = judge(point, x, o, limit=limit, dtype=limit.dtype)
            halves = judge(point, interleave_halves(x), o, limit=limit, dtype=limit.dtype)
            self.half_split = plain.verdict == "fail" and halves.verdict == "pass"
            if self.half_split:
                self._say_half_split(number, theirs)
            return self.half_split
        return False

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

    # -- judging ------------------------------------------------------------------------------------
