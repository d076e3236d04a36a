"""Runs of an oracle that rounds, with noise of float32's size before each rounding.

Where a program rounds on purpose, the last bit of float32 decides now and then between two neighbours, and
what follows of that grows from block to block. How far two right programs of such an arithmetic come apart
over a whole run is seen by running it twice: the noise is random, of the deviation that `rounding` gives, and
the roundings are as declared. `RoundedRun` does the same where nothing is declared. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.arithmetic.rounded_oracle import rounded_oracle
from llama_ckpt.arithmetic.turns import FAST_TURNS, fast_error
from llama_ckpt.judging.rounded_run import DRAWS
from llama_ckpt.judging.rounding_steps import PRECISIONS, product_deviation
from llama_ckpt.oracle.patched_oracle import PatchedOracle

__all__ = ["NoisyRun", "noisy_oracle"]

Array: TypeAlias = NDArray[np.float64]

FLOAT32 = PRECISIONS["float32"]

ROUNDINGS = 4.0
"""Of an element in a step that is no sum: a norm, a turn, exp and a division, silu."""


def noisy_oracle(draw: np.random.Generator) -> PatchedOracle:
    """The oracle whose steps are off at random, as float32 puts them off."""

    def off(x: Array, deviation: Any) -> Array:
        return np.asarray(x + draw.standard_normal(x.shape) * deviation)

    def element(right: PatchedOracle, name: str, *args: Any, **options: Any) -> Array:
        y = getattr(right, name)(*args, **options)
        return off(y, ROUNDINGS * FLOAT32.u * np.abs(y))

    def linear(right: PatchedOracle, x: Array, w: Any) -> Array:
        y: Array = right.linear(x, w)
        return off(y, product_deviation(x, w, y, FLOAT32)[0])

    def scores(right: PatchedOracle, queries: Array, keys: Array) -> Array:
        y: Array = right.scores(queries, keys)
        return off(y, _of_sums(queries, keys.swapaxes(-1, -2)))

    def mixed(right: PatchedOracle, probs: Array, values: Array) -> Array:
        y: Array = right.mixed(probs, values)
        return off(y, _of_sums(probs, values))

    def named(name: str) -> Any:
        return lambda right, *args, **options: element(right, name, *args, **options)

    steps = {name: named(name) for name in ("rms_norm", "turned", "probabilities", "gated", "added")}
    return PatchedOracle({**steps, "linear": linear, "scores": scores, "mixed": mixed})


def _of_sums(a: Array, b: Array) -> Array:
    """Of each sum of products `[..., n, K]` with `[..., K, m]`."""
    walk = FLOAT32.u * a.shape[-1] ** 0.5
    return np.asarray(walk * np.sqrt(np.square(a) @ np.square(b)))


def _with_a_table(by: PatchedOracle, draw: np.random.Generator) -> PatchedOracle:
    """The same with cosines and sines as a GPU's table leaves them, in each block alike."""
    seed = int(draw.integers(2**31))

    def cos_and_sin(right: PatchedOracle, positions: Any, frequencies: Any) -> tuple[Array, Array]:
        off = fast_error(positions, frequencies)
        again = np.random.default_rng(seed)
        cos, sin = (x + again.uniform(-off, off) for x in right.cos_and_sin(positions, frequencies))
        return cos, sin

    return PatchedOracle({"cos_and_sin": cos_and_sin}, by)


@dataclass
class NoisyRun:
    """A run from the tokens on in a declared arithmetic; the same faces as a `RoundedRun`.

    Args:
        embedding: what goes into the first block that is run, float64 `[n, width]`.
        weights: the model's, as `oracle.logits` takes them; blocks are asked for one after the other.
        config: its numbers.
        positions: `[n]`.
        arithmetic: what the program rounds; weight_type: see `rounded_oracle`.
        first: the first block that is run.
    """

    embedding: Array
    weights: Any
    config: Any
    positions: Any
    arithmetic: Arithmetic
    weight_type: str = "F32"
    first: int = 0
    _oracles: list[PatchedOracle] = field(default_factory=list)
    _streams: list[Array] = field(default_factory=list)
    _points: list[dict[str, Array]] = field(default_factory=list)
    _next: int = 0

    def block(self, number: int) -> list[dict[str, Array]]:
        """The points of block `number` by neutral name, of each draw; asked for in rising order."""
        self._begin()
        while self._next <= number:
            weights = self.weights.blocks[self._next]
            self._points = [self._block(draw, weights) for draw in range(DRAWS)]
            self._next += 1
        return self._points

    def head(self) -> list[dict[str, Array]]:
        """`output_norm` and `logits` of each draw."""
        self.block(self.config.n_layers - 1)
        found = []
        for by, x in zip(self._oracles, self._streams, strict=True):
            seen: dict[str, Array] = {}
            seen["logits"] = by.output_logits(x, self.weights, config=self.config, tap=seen.__setitem__)
            found.append(seen)
        return found

    def _begin(self) -> None:
        if self._oracles:
            return
        self._next = self.first
        for seed in range(DRAWS):
            draw = np.random.default_rng(seed)
            by = rounded_oracle(self.arithmetic, weight_type=self.weight_type, base=noisy_oracle(draw))
            self._oracles.append(_with_a_table(by, draw) if self.arithmetic.turns == FAST_TURNS else by)
            self._streams.append(self.embedding)

    def _block(self, draw: int, weights: Any) -> dict[str, Array]:
        seen: dict[str, Array] = {}
        by, x = self._oracles[draw], self._streams[draw]
        seen["out"] = self._streams[draw] = by.block(
            x, weights, config=self.config, positions=self.positions, tap=seen.__setitem__
        )
        return seen
