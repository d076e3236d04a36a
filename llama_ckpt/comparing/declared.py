"""What a declared arithmetic makes of steps, and what it leaves open.

Once a step is rounded where the program says that it rounds, float32's rounding may be left, and where that
decides between two neighbours of a format, the step from one to the other: a result that lies in the middle
may fall either way, and so may an activation before its product. Those are found by moving what is rounded by
what float32 may have moved it. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.floats import FLOATS
from llama_ckpt.arithmetic.formats import SCALED, UNROUNDED, round_rows, rounded
from llama_ckpt.arithmetic.integers import INTEGERS, either_sum
from llama_ckpt.arithmetic.products import (
    TENSOR_CORES,
    matrix_in_parts,
    parsed_sums,
    rounded_matrix,
)
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.arithmetic.rests import RESTS
from llama_ckpt.arithmetic.rounded_oracle import rounded_oracle, scaled_before
from llama_ckpt.arithmetic.tensor_cores import BITS, FP8_SUMS
from llama_ckpt.arithmetic.turns import FAST_STEP, FAST_TURNS, fast_error
from llama_ckpt.comparing.falls import (
    RECORDED,
    SMOOTH,
    added,
    fallen,
    of_both,
    of_minima,
    of_parts,
    of_weights,
    step,
    through,
)
from llama_ckpt.judging.limits import ELEMENT, ERR
from llama_ckpt.judging.rounding_steps import angle_error
from llama_ckpt.judging.spread import RowSums, Spread
from llama_ckpt.oracle.patched_oracle import RIGHT, PatchedOracle

__all__ = ["RESULTS", "Declared", "wider", "with_falls"]

Array: TypeAlias = NDArray[Any]

RESULTS: Final[Mapping[str, str]] = {
    "embd": "embeddings",
    **dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), "norms"),
    **dict.fromkeys(("q", "k", "v", "ffn_gate", "ffn_up", "logits"), "products"),
    **dict.fromkeys(("attn_out", "ffn_out"), "stream_products"),
    **dict.fromkeys(("q_rope", "k_rope"), "turned"),
    "attn_scores": "scores",
    "attn_probs": "probabilities",
    "attn_context": "context",
    "ffn_swiglu": "gated",
    **dict.fromkeys(("ffn_inp", "out"), "residual"),
}
"""A point and the line of an `Arithmetic` that its tensor is rounded by."""


EXACTLY = 1e-6
"""A step from neighbour to neighbour is allowed whole, whatever the last bit of its limit is."""


SCALES = 2.0**-23
"""What the scales of two tensors are off, each largest / most in float32, or largest times 1 / most."""

TF32_STEP = 2.0**-26
"""What a sum in a tensor core loses with each eight products: it is cut off, always towards zero."""


@dataclass(frozen=True)
class Declared:
    """An arithmetic as it holds for all rows of one dump.

    Attributes:
        arithmetic: with the lines for that number of rows.
        weight_type: of weights that do not say theirs.
    """

    arithmetic: Arithmetic
    weight_type: str = "F32"

    @classmethod
    def of(cls, arithmetic: Arithmetic, rows: int, weight_type: str) -> Declared:
        """For a pass of so many rows."""
        return cls(replace(arithmetic.for_rows(rows), fewer_rows={}), weight_type)

    @cached_property
    def oracle(self) -> PatchedOracle:
        """The oracle that rounds."""
        return rounded_oracle(self.arithmetic, weight_type=self.weight_type)

    @cached_property
    def before(self) -> PatchedOracle:
        """The same without the rounding of results: what is rounded in a step is in it."""
        lines: dict[str, Any] = dict.fromkeys(set(RESULTS.values()), "float32")
        head = {k: v for k, v in self.arithmetic.head.items() if k != "products"}
        return rounded_oracle(replace(self.arithmetic, **lines, head=head), weight_type=self.weight_type)

    def result(self, point: str) -> str:
        """What a point's tensor is rounded to."""
        lines = self.arithmetic.for_head() if point == "logits" else self.arithmetic
        if point not in RESULTS:  # a checkpoint's own point
            return "float32"
        found: str = getattr(lines, RESULTS[point])
        return found

    def result_ties(self, point: str, unrounded: Array, spread: Spread) -> Array | None:
        """What the rounding of a result adds where it falls the other way; None where it is not rounded.

        Args:
            spread: what may be left in the result before it is rounded, which stays in it afterwards.
        """
        name = self.result(point)
        if name in UNROUNDED:
            return None
        o, moved = rounded(unrounded, name), ELEMENT * np.broadcast_to(spread.deviation, unrounded.shape)
        if spread.most is not None:
            moved = moved + spread.most
        apart = [np.abs(rounded(unrounded + sign * moved, name) - o) for sign in (1, -1)]
        falls = np.maximum(*apart) * (1 + EXACTLY)
        # What stays allowed beside is more of an element than of a tensor or a row, in which a single fall
        # may be all that is off.
        beside = np.where(falls > 2 * moved, ERR / ELEMENT * moved, moved)
        return np.maximum(falls - beside, 0.0)

    def product_ties(
        self, x: Array, off: Array | None, w: Any, *, head: bool = False, stream: bool = False
    ) -> Array | None:
        """What activations may add to a product that fall the other way before it, `[n, out]`.

        Args:
            head: the product is that of the output head; stream: it is added to the stream.
        """
        lines = self.arithmetic.for_head() if head else self.arithmetic
        kind = getattr(w, "weight_type", None) or self.weight_type
        name, sums, reading = lines.activation(kind, stream=stream), lines.sums(kind), lines.reading(kind)
        found: Array | None = None
        if name in RESTS and reading in RESTS:
            found = of_parts(x, off, name, matrix_in_parts(w, reading))
        elif name not in UNROUNDED:
            found = through(fallen(x, off, name), rounded_matrix(w, reading))
            minima = getattr(w, "minima", None)
            found = added(found, self._sum_ties(x, name, minima))
            found = added(found, of_minima(x, name, minima))
        found = added(found, of_weights(x if name in UNROUNDED else rounded(x, name), w, reading))
        if sums in FP8_SUMS and found is not None:
            # What is added up is exact, and where it is cut off follows from it, but where a factor falls.
            y = np.abs(self.before.linear(x, w)).reshape(len(x), -1)
            most = 2.0**-BITS * np.maximum(y, y.max(axis=-1, keepdims=True))
            found = found + np.where(found.any(axis=-1, keepdims=True), most, 0.0)
        if sums not in ("float32", TENSOR_CORES, *FP8_SUMS):
            y = np.abs(self.before.linear(x, w)).reshape(len(x), -1)
            found = added(found, step(parsed_sums(sums)[0], np.maximum(y, y.max(axis=-1, keepdims=True))))
        return found

    def in_common(self, w: Any, *, head: bool = False, stream: bool = False) -> float:
        """A relative deviation that all elements of a product have in common."""
        lines = self.arithmetic.for_head() if head else self.arithmetic
        kind = getattr(w, "weight_type", None) or self.weight_type
        name = lines.activation(kind, stream=stream)
        if name.startswith("tf32") or lines.sums(kind) == TENSOR_CORES:
            return TF32_STEP * int(np.shape(w)[-1]) / 8
        return SCALES if name in SCALED else 0.0

    def falls_together(
        self, x: Array, w: Any, y: Array, *, head: bool = False, stream: bool = False
    ) -> RowSums | None:
        """What sums of blocks that fall the other way add up to along a row y `[n, out]`, and in sum.

        One moves all elements of a row at once, each by its weight's minimum, and those have a mean.
        """
        lines = self.arithmetic.for_head() if head else self.arithmetic
        kind = getattr(w, "weight_type", None) or self.weight_type
        name, minima = lines.activation(kind, stream=stream), getattr(w, "minima", None)
        either = either_sum(x, name) if name in INTEGERS and minima is not None else None
        if either is None or minima is None:
            return None
        along = np.sum(either * np.abs(y.reshape(len(x), -1) @ minima), axis=1)
        return RowSums(along, either @ np.abs(minima.sum(axis=0)))

    def turn_in_common(self) -> float:
        """A relative deviation that all elements of a turned tensor have in common."""
        return FAST_STEP if self.arithmetic.turns == FAST_TURNS else 0.0

    @staticmethod
    def _sum_ties(x: Array, name: str, minima: Array | None) -> Array | None:
        if minima is None or (sums := round_rows(x, name).sums) is None:
            return None
        moved = [round_rows(x * (1 + sign * RECORDED), name).sums for sign in (1, -1)]
        largest = np.maximum(*(np.abs(one - sums) for one in moved if one is not None))
        falls = added(np.where(largest > SMOOTH * RECORDED * np.abs(sums), largest, 0.0), either_sum(x, name))
        return through(falls, minima)

    def norm_ties(self, x: Array, off: Array | None, weight: Array, eps: float) -> Array | None:
        """What a row that is rounded before the weight may leave."""
        scaled = RIGHT.rms_norm(x, 1.0, eps=eps)
        came = None if off is None else off * np.abs(scaled) / np.maximum(np.abs(x), 1e-300)
        found = fallen(scaled, came, self.arithmetic.norm_scaled)
        return None if found is None else found * np.abs(weight)

    def turn_ties(self, x: Array, off: Array | None, positions: Any, frequencies: Array) -> Array | None:
        """What rounded cosines and sines, and rounded products with them, may leave of a turn."""
        cos, sin = self.before.cos_and_sin(positions, frequencies)
        zero = np.zeros_like(cos)
        found: Array | None = None
        for part in ((cos, zero), (zero, sin)):
            made = RIGHT.turned(x, *part)
            found = added(found, fallen(made, off, self.arithmetic.rotation))
        tables = self._tables(positions, frequencies)
        if tables is None:
            return found
        # What is rounded after a cosine that fell falls elsewhere, too: each of the four is turned through.
        made = self.before.turned(x, cos, sin)
        apart = [np.abs(self.before.turned(x, *either) - made) for either in product(*tables)]
        return added(found, np.max(apart, axis=0))

    def turns_apart(self, positions: Any, frequencies: Array) -> Array | None:
        """By how many radians cosines and sines that fall turn a pair, in every head alike; `[n, pairs]`."""
        tables = self._tables(positions, frequencies)
        if tables is None:
            return None
        pairs = len(frequencies)
        return np.asarray(sum(np.abs(up - down).reshape(-1, pairs) for up, down in tables))

    def _tables(self, positions: Any, frequencies: Array) -> list[tuple[Array, Array]] | None:
        """Cosines and sines up and down, by what float32 leaves of angles or a fast one is off by."""
        name = self.arithmetic.turns
        if name in UNROUNDED:
            return None
        angle = angle_error(positions, frequencies)
        found = []
        if name == FAST_TURNS:
            fast = fast_error(positions, frequencies)
            made = self.before.cos_and_sin(positions, frequencies)
            return [(which + fast, which - fast) for which in made]
        for which in RIGHT.cos_and_sin(positions, frequencies):
            moved = np.hypot(RECORDED * which, angle.reshape(which.shape))
            found.append((rounded(which + moved, name), rounded(which - moved, name)))
        return found

    def gate_ties(self, gate: Array, up: Array, off: Array | None) -> Array | None:
        """What a silu that is rounded before its product may leave."""
        found = fallen(RIGHT.gated(gate, np.ones_like(up)), off, self.arithmetic.silu)
        return None if found is None else found * np.abs(up)

    def probability_ties(
        self, scores: Array, head_dim: int, probs: Array, came: Array | None
    ) -> Array | None:
        """What scores that fell on the way, or fall once they are scaled, may leave of probabilities.

        A score that falls moves its own probability, and by the sum that divides them all others of its row.

        Args:
            came: by how much scores that were not recorded may have been moved by what fell before them.
        """
        found = fallen(RIGHT.scaled(scores, head_dim), None, self.arithmetic.scaled)
        found = added(found, None if came is None else RIGHT.scaled(came, head_dim))
        if found is None:
            return None
        # d p_i = p_i (d z_i - sum_j p_j d z_j)
        return np.asarray(probs * (found + np.vecdot(probs, found)[..., None]))

    def score_ties(self, q: Array, k: Array, off_q: Array | None, off_k: Array | None) -> Array | None:
        """The same of scores `[..., queries, keys]`, for stacks of queries and keys."""
        times = scaled_before(self.arithmetic, q.shape[-1])

        def before(x: Array, off: Array | None, name: str) -> Array | None:
            falls = fallen(x * times, None if off is None else off * times, name)
            return None if falls is None else falls / times

        queries, keys = before(q, off_q, self.arithmetic.queries), before(k, off_k, self.arithmetic.keys)
        return of_both(queries, q, keys, k)

    def mixing_ties(
        self, probs: Array, v: Array, off_p: Array | None, off_v: Array | None, came: Array | None
    ) -> Array | None:
        """The same of mixed values `[..., queries, head_dim]`; came: of probabilities, as there of scores."""
        mixing, values = self.arithmetic.mixing, self.arithmetic.values
        weights = fallen(probs, off_p, mixing)
        if weights is not None and self.arithmetic.keys_at_a_time and mixing in FLOATS:
            weights = step(mixing, np.abs(probs))  # exp(score - largest) lies elsewhere than a probability
        turned = fallen(v, off_v, values)
        across = v.swapaxes(-1, -2)
        found = of_both(weights, probs, None if turned is None else turned.swapaxes(-1, -2), across)
        found = added(found, of_both(came, probs, None, across))
        if self.arithmetic.mixed_sums not in UNROUNDED:
            most = np.abs(v).max(axis=-2, keepdims=True)
            found = added(
                found,
                np.broadcast_to(step(self.arithmetic.mixed_sums, most), (*probs.shape[:-1], v.shape[-1])),
            )
        return found


def wider(spread: Spread, ties: Array | None, y: Array) -> Spread:
    """A spread with what may fall to another neighbour on top; y: the tensor.

    It comes on top, and not to the deviation: where a single element falls, it does so by all of it.
    """
    if ties is None or not ties.any():
        return spread
    most = ties if spread.most is None else spread.most + ties
    rows, exact = ties.reshape(len(y), -1), y.reshape(len(y), -1)
    falls = RowSums(np.linalg.norm(rows * exact, axis=1), np.linalg.norm(rows, axis=1))
    sums = (spread.sums or _sums_of(spread, exact)).and_of(falls)
    angles = None if spread.angles is None else spread.angles.wider(y, ties)
    return replace(spread, most=most, sums=sums, aligned=False, angles=angles)


def with_falls(spread: Spread, falls: RowSums | None) -> Spread:
    """A spread whose rows may be moved at once besides; what each element moves by is in it already."""
    if falls is None or spread.sums is None:
        return spread
    return replace(spread, sums=spread.sums.and_of(falls))


def _sums_of(spread: Spread, exact: Array) -> RowSums:
    off = np.broadcast_to(spread.deviation.reshape(len(spread.deviation), -1), exact.shape)
    if spread.aligned:
        norms = np.linalg.norm(off, axis=1)
        return RowSums(norms * np.linalg.norm(exact, axis=1), norms * exact.shape[1] ** 0.5)
    return RowSums(np.linalg.norm(off * exact, axis=1), np.linalg.norm(off, axis=1))
