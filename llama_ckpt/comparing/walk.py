"""Going through somebody's dump in the order of the data's flow, one block in memory at a time.

A dump's error has two parts that look alike in a tensor: what was done wrong in the step that made it, and
what came in with its inputs. To tell them apart each block is computed three times in float64:

    exact   from the tokens on, with nothing of theirs: their distance from it is the `total` error
    own     each step on the nearest inputs that they recorded: the distance is the error made since these
    whole   the block on what went into theirs: how much of the error at its end came in with that

The walk goes in the order of the data, and hands on from block to block two vectors a token: what should go
into the next block, and what does by their dump. One block's weights and tensors are in memory at a time; a
float64 7B would not fit. A block of which they recorded nothing is computed through, and nothing is said of
it. Without weights (dumps of theirs against recorded ones) the recording stands in for `exact`.

numpy only, so that comparing starts fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from llama_ckpt.arithmetic.formats import rounded
from llama_ckpt.comparing.block_run import Given
from llama_ckpt.comparing.block_spreads import OwnBlock
from llama_ckpt.comparing.comparison import LayerErrors
from llama_ckpt.comparing.half_numbers import half_numbers
from llama_ckpt.comparing.head_run import FixedRun, HeadRun
from llama_ckpt.comparing.over_blocks import MOST_PRODUCTS
from llama_ckpt.comparing.own_run import OwnRun
from llama_ckpt.comparing.settling import Settling
from llama_ckpt.comparing.stretch import Stretch
from llama_ckpt.comparing.unrounded import Unrounded
from llama_ckpt.comparing.walk_points import ENDS, WORTH_ASKING, Array
from llama_ckpt.identify.record import Around
from llama_ckpt.judging.by_rows import parts
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import limit_for, within
from llama_ckpt.judging.metrics import relative_error
from llama_ckpt.judging.rounding_steps import PRECISIONS
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.tally import row_errors
from llama_ckpt.oracle.patched_oracle import RIGHT
from llama_ckpt.oracle.weights import KEPT_BYTES
from llama_ckpt.points import ALL_POINTS, Case, block_point, split_name

__all__ = ["Walk"]


@dataclass
class Walk(Settling):
    """One walk through a dump; fills a `Comparison`."""

    def run(self) -> None:
        """Judge every tensor that is there."""
        # The order matters: what a block reads must have been judged, or repaired, before it; shifts are
        # looked for first, as a shifted dump would fail in each block; the whole model comes last, since it
        # needs all the ends.
        sides = self.sides
        self.explainer.around = Around(sides.config, sides.weights, {}, sides.token_ids, sides.positions)
        exact = self._exact_embedding()
        if sides.weights is not None and exact is not None:
            self.rounded = self.run_from(exact, chosen=self.chosen)
            self.rounded_since = self.rounded
            if self.declared is not None:
                self.unrounded = Unrounded(self.flow, sides.weights)
        if self.undeclared is not None and half_numbers(sides, None) is None:
            self.undeclared.stretch = self._stretch
        given = self._embedding(exact)
        self._find_shifts(exact)
        for number in range(sides.n_layers):
            if self.progress:
                self.progress(f"block {number}", number, sides.n_layers)
            exact, given = self._block(number, exact, given)
        self._head(exact, given)
        if self.explainer.diagnoses:
            self.explainer.explain_whole(self._whole_model())

    def _stretch(self, name: str, x: Array, run: OwnRun) -> Stretch | None:
        """What lies between a point and the last recorded end, or the tokens; None where that is too much."""
        since, sides = self.rounded_since, self.sides
        point = split_name(name)[1]
        if sides.file is None or since is None or ALL_POINTS[point].causal or x.shape != run[point].shape:
            return None
        elements = sum(math.prod(info.shape) for info in sides.file.tensors.values())
        if 8 * elements > KEPT_BYTES or elements * len(sides.token_ids) > MOST_PRODUCTS:
            return None
        table = replace(self._limit(name, "total"), error_kind="own")
        stretch = Stretch(
            name,
            x,
            since.embedding,
            since.first,
            embedded=since is self.rounded and "embd" not in sides.theirs.names,
            weights=sides.weights,
            config=sides.config,
            positions=self.flow.positions,
            limit=table,
            last=self.last_row and point == "logits",
        )
        # Of the same start as what rounds at random: what was recorded on the way is off by more.
        exact = {point: stretch.run(RIGHT)}
        return replace(stretch, limit=self._widened(name, table, exact, since))

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
        function = "last_row" if self.last_row else "logits"
        case = Case(function, arguments, ("logits",), {name: name for name in names})
        base = None if self.declared is None else self.declared.oracle
        ends = [(name, x, right[split_name(name)[1]]) for name, (x, right) in self.ends.items()]
        return [
            Evidence(name, x, o, self._limit(name, "total"), case, base=base)
            for name, x, o in ends
            if x.shape == o.shape
        ]

    def say_what_hides(self) -> None:
        """Say of declared roundings behind which points a bug may stand, as whole blocks lie before them."""
        for point in self.result.points if self.declared is not None else ():
            between = [split_name(name)[1] for name in point.since.unseen[:-1]]
            if point.own is None or point.made or "out" not in between:
                continue
            left = point.own.err
            self.result.note_arithmetic(point.name, 0.0, left, passes=True)
            if left > limit_for(point.name, "float32", "total").err:
                self.result.cannot_tell.append(
                    f"{point.name}: ties fell otherwise in the blocks before it, and a bug that puts it off "
                    f"by less than {left:.1e} can't be seen"
                )

    def say_ties(self) -> None:
        """Say which near ties of a mixture's router were followed, and what was left out because of them."""
        self.result.notes += self.router_ties.notes()
        self.result.cannot_tell += self.router_ties.left_out()

    # -- outside the blocks -------------------------------------------------------------------------

    def _exact_embedding(self) -> Array | None:
        sides = self.sides
        if sides.weights is None:
            return self._reference("embd")
        # A row at a time: the table has 32,000 of them, and a prompt needs a few.
        table = sides.file.float32 if sides.file else None
        assert table is not None
        rows = [table("token_embd.weight", slice(token, token + 1))[0] for token in sides.token_ids]
        exact = np.asarray(rows, np.float64)
        return exact if self.declared is None else rounded(exact, self.declared.result("embd"))

    def _embedding(self, exact: Array | None) -> Given:
        """Judge `embd`; what goes into the first block."""
        x = self.take("embd", lambda: exact)
        if x is None:
            if exact is None or self.sides.weights is None:
                return Given(None)
            half = PRECISIONS[self.sides.dtype].half
            return Given(exact, off=Spread(half * np.abs(exact)) if half else None)
        if exact is not None:
            cases = {}
            if self.sides.weights is not None and not np.array_equal(x, exact):
                # The whole table, which is large, only where it is asked what went wrong.
                arguments = {"token_ids": self.sides.token_ids, "weight": self.sides.weights.token_embd}
                cases["embd"] = Case("embed", arguments, ("embd",))
            self._judge_step({"embd": x}, {"embd": exact}, FixedRun({"embd": exact}, cases), None)
        else:
            self.recorded["embd"] = bool(np.isfinite(x).all())
        # A NaN would go into every step after it and hide what is wrong there: the walk goes on with the
        # right one.
        if exact is not None and (np.array_equal(x, exact) or not np.isfinite(x).all()):
            return Given(exact)  # itself, so that what is made of it is made once
        return Given(x.astype(np.float64) if np.isfinite(x).all() else exact)

    def _head(self, exact: Array | None, given: Given) -> None:
        """Judge `output_norm` and `logits`.

        Args:
            exact: what should come out of the last block, float64 [n, width]; None where nobody knows.
            given: what does by their dump.
        """
        sides = self.sides
        names = [name for name in ENDS if name != "embd"]
        right: Mapping[str, Array]
        if sides.weights is not None and exact is not None:
            right = self.head_on(Given(exact, ties=self.ties), {})
        else:
            right = {name: r for name in names if (r := self._reference(name)) is not None}
        theirs = {n: x for n in names if (x := self.take(n, partial(right.get, n))) is not None}
        if self.last_row:  # known only now
            if isinstance(right, HeadRun):
                right = replace(right, last=True, _made={})
            elif (r := self._reference("logits")) is not None:
                right = {**right, "logits": r}
        own = self.head_on(given, self.reliable(theirs), last=self.last_row)
        # As in `settle`: put right what was recorded before its weight, then compute again what reads it.
        if sides.weights is not None and "output_norm" in theirs and "output_norm" in own:

            def on(others: Mapping[str, Array]) -> HeadRun:
                return replace(own, theirs=others, _made={})

            repaired = self.recorded_early("output_norm", theirs, own, sides.weights.output_norm, on)
            if repaired is not None:
                theirs["output_norm"] = repaired
                own = on(self.reliable(theirs))
        self._judge_step(theirs, right, own, None)
        if "logits" in theirs:
            self._choices(theirs["logits"], right)

    def _choices(self, x: Array, right: Mapping[str, Array]) -> None:
        """The likeliest next tokens, and who is right about them; some rows of the logits at a time."""
        reference, limit = self._reference("logits"), self._limit("logits", "total")
        first = len(self.sides.token_ids) - len(x)
        ties = right.unjudged("logits") if isinstance(right, HeadRun) else None
        for part in parts(x.shape):
            exact = right.logits(part) if isinstance(right, HeadRun) else None
            theirs = None if reference is None else reference[part]
            for choice in self.explainer.choices(x[part], exact, theirs, limit):
                if choice.blame == "yours" and ties is not None and ties[part][choice.row]:
                    choice = replace(choice, blame="tie")
                self.result.tokens.append(replace(choice, row=choice.row + part.start + first))

    # -- one block ----------------------------------------------------------------------------------

    def _block(self, number: int, exact_in: Array | None, given: Given) -> tuple[Array | None, Given]:
        """Judge a block's points; what goes into the next one, exactly and by theirs.

        Args:
            number: which block.
            exact_in: what should go in, float64 [n, width]; None where nobody knows.
            given: what went in by their dump.
        """
        weights = self.sides.weights.blocks[number] if self.sides.weights is not None else None
        right: Mapping[str, Array]
        if weights is not None and exact_in is not None:
            made, self.first_block = self.first_block, None
            if made is None:
                made = self.block_on(number, Given(exact_in, ties=self.ties), weights, {})
            right = self._choosing_as_they(number, made) if self.flow.experts else made
            if self.unrounded is not None:
                self.unrounded.enter(number, exact_in)
        else:
            names = {p: block_point(number, p) for p in self.data_flow.inside}
            right = {p: r for p, name in names.items() if (r := self._reference(name)) is not None}
        # Settled before it is judged: the verdict is of tensors in our order, with their weights in.
        theirs = self.theirs_of(number, right)
        whole = self._whole(number, right, given)
        if theirs:
            theirs, own = self.settle(number, theirs, given, weights, right)
            self._judge_step(theirs, right, own, number, whole)
        else:  # computed through, and nothing is said of it
            own = self.block_on(number, given, weights, {}) if whole is None else whole
        if own.flow.experts and (since := own.known("ffn_chosen")) is not None:
            self.chosen_since[number] = since
        end, onwards = theirs.get("out"), self._onwards(number, theirs, own)
        # What is left to do needs the ends alone, and a block of a long prompt is large.
        theirs.clear()
        if isinstance(right, OwnBlock):
            self.ties = right.unjudged("out")
        for run in (own, right):
            if isinstance(run, OwnBlock):
                run.forget()
        self._draw(number, exact_in, given, right, whole, end)
        return right.get("out"), onwards

    def _choosing_as_they(self, number: int, right: OwnBlock) -> OwnBlock:
        """A mixture's exact block, which goes through their experts where these are as right as its own."""
        made = right.choosing_by(self.choosing(number, right))
        self.chosen[number] = made["ffn_chosen"]
        near = made.near_ties()
        if near is not None:
            self.router_ties.near[number] = near
            self.router_ties.followed[number] = (made["ffn_chosen"] != right["ffn_chosen"]).any(axis=1)
        return made

    def _whole(self, number: int, right: Mapping[str, Array], given: Given) -> OwnBlock | None:
        """The block on what went into theirs; None without a model, or where nobody knows what did."""
        if not isinstance(right, OwnBlock) or given.start is None:
            return None
        # While their input is the exact one, both runs of the block are the same, and it is computed once.
        return right if given.start is right.given.start else right.given_another(given)

    def _onwards(self, number: int, theirs: Mapping[str, Array], own: OwnBlock) -> Given:
        """What goes into the next block: their end, wrong as it may be.

        The next block's own error is what it adds to that. Where they recorded none, or NaN, it is what the
        steps give on the nearest that they did record.
        """
        name, end = block_point(number, "out"), theirs.get("out")
        if end is not None:
            self.recorded.setdefault(name, bool(np.isfinite(end).all()))
        if end is None or not self.recorded[name]:
            ties = own.unjudged("out")
            if own.reaches_input("out") or "out" not in own.spreads:
                return Given(own.get("out"), far=True, ties=ties)
            return Given(own["out"], off=own.spreads["out"], ties=ties)
        start = np.asarray(end, np.float64)
        if self.sides.weights is not None:
            self.rounded_since = self.run_from(start, number + 1, chosen=self.chosen_since)
        return Given(start)

    def _draw(
        self,
        number: int,
        exact_in: Array | None,
        given: Given,
        right: Mapping[str, Array],
        whole: OwnBlock | None,
        end: Array | None,
    ) -> None:
        """How much of the error at a block's end is its own; nothing is drawn of an end not recorded."""
        name = block_point(number, "out")
        exact_out, reference = right.get("out"), self._reference(name)
        limit, drawn = self._limit(name, "total"), LayerErrors(number, limit=float("nan"))
        if self.sides.weights is not None:
            drawn = replace(drawn, reference=known_error(reference, exact_out), limit=limit.err)
        if end is not None and exact_out is not None:
            from_input = None if whole is None else whole["out"]
            inherited, came_in = known_error(from_input, exact_out), known_error(given.start, exact_in)
            own = known_error(end, from_input)
            drawn = replace(
                drawn,
                own=own,
                inherited=inherited,
                total=known_error(end, exact_out),
                amplification=inherited / came_in if came_in > 0 else np.nan,
                own_limit=self._own_limit(name, own, whole),
                limit=limit.err,
                row_errs=tuple(row_errors(end, exact_out).tolist()),
            )
        self.result.layers.append(drawn)

    def _own_limit(self, name: str, own: float, whole: OwnBlock | None) -> float:
        """What is allowed of a block's own error."""
        if whole is not None and whole.is_far("out"):
            return self._limit(name, "total").err
        limit = limit_for(name, self.sides.dtype, "own")
        # What rounding leaves of this very block is asked where the table is exceeded.
        if whole is not None and limit.err < own < WORTH_ASKING * limit.err:
            limit = within(limit, whole.spreads["out"], whole["out"])
        return limit.err


def known_error(x: Array | None, o: Array | None) -> float:
    """The relative error; NaN where one is missing or their shapes differ."""
    if x is None or o is None or x.shape != o.shape:
        return float("nan")
    return relative_error(x, o)
