"""What rounding comes to over a whole run: the oracle runs again, with each step put off as rounding may.

A total error is made of every step's own, grown or shrunk by all that comes after; how much depends on the
model. So the run is repeated with noise: after each step every element is moved by a random number of the
deviation that `rounding` gives, and RoPE's angles by what float32 costs there. How far that run is
from the exact one at a point is how far a right program may be, up to the chance of one draw. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.limits import MARGIN, STRUCTURE_FLOOR, Limit
from llama_ckpt.judging.metrics import averaging, measure
from llama_ckpt.judging.rounding import case_spreads
from llama_ckpt.judging.rounding_steps import PRECISIONS
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.step_spreads import sum_spread
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.c06b_experts import weights_of
from llama_ckpt.oracle.patched_oracle import PatchedOracle

__all__ = ["PARTED", "RoundedRun", "at_least", "parted"]

Array: TypeAlias = NDArray[np.float64]

DRAWS = 2
"""Runs with other noise; the larger of their errors counts."""

PARTED = math.sqrt(2)
"""Two right runs of an arithmetic that have parted are each what it costs from the run without it, which way
is chance: so far are they apart, of what it costs."""

STEP = 2.0
"""An element falls by a whole step of its format where rounding costs it half of one at most."""

CHANCE = 3.0
"""Of a norm over n numbers that are off by chance, so many times 1 / sqrt(2 n)."""


@dataclass
class RoundedRun:
    """A run from the tokens on, block by block, that rounds at random.

    Args:
        embedding: what goes into the first block that is run, float64 `[n, width]`.
        weights: the model's, as `oracle.logits` takes them; blocks are asked for one after the other.
        config: its numbers.
        positions: `[n]`.
        dtype: the program's, a key of `rounding.PRECISIONS`.
        first: the first block that is run.
        chosen: by block the experts that each token goes through, `[n, n_used]`; where there are none those
            of its own scores.
    """

    embedding: Array
    weights: Any
    config: Any
    positions: Any
    dtype: str
    first: int = 0
    chosen: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)
    _streams: list[_Stream] = field(default_factory=list)
    _points: list[dict[str, Array]] = field(default_factory=list)
    _next: int = 0

    def block(self, number: int) -> list[dict[str, Array]]:
        """The points of block `number` by neutral name, of each draw; asked for in rising order."""
        self._begin()
        while self._next <= number:
            block = self.weights.blocks[self._next]
            chosen = self.chosen.get(self._next)
            self._points = [stream.block(block, self, chosen) for stream in self._streams]
            self._next += 1
        return self._points

    def head(self) -> list[dict[str, Array]]:
        """`output_norm` and `logits` of each draw."""
        self.block(self.config.n_layers - 1)
        return [stream.head(self) for stream in self._streams]

    def _begin(self) -> None:
        if not self._streams:
            self._next = self.first
            half = Spread(PRECISIONS[self.dtype].half * np.abs(self.embedding))
            for seed in range(DRAWS):
                draw = np.random.default_rng(seed)
                self._streams.append(_Stream(draw, _put_off(self.embedding, half, draw)))


@dataclass
class _Stream:
    """One draw: its numbers, and the residual stream so far."""

    draw: np.random.Generator
    x: Array

    def block(
        self, weights: Any, run: RoundedRun, chosen: NDArray[np.int64] | None = None
    ) -> dict[str, Array]:
        config, made = run.config, dict[str, Array]()
        at = {"positions": run.positions}
        turn: dict[str, Any] = {**at, "frequencies": oracle.rope_frequencies(config)}
        turn["magnitude"] = oracle.rope_magnitude(config)
        heads = {"n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads}

        def norm(point: str, x: Array, weight: ArrayLike) -> None:
            self._step(run, made, oracle.rms_norm, (point,), x=x, weight=weight, eps=config.rms_norm_eps)

        norm("attn_norm", self.x, weights.attn_norm)
        matrices = {name: getattr(weights, name) for name in ("wq", "wk", "wv")} | _biases(
            weights, "bq", "bk", "bv"
        )
        self._step(run, made, oracle.qkv, ("q", "k", "v"), x=made["attn_norm"], **matrices, **heads)
        self._step(run, made, oracle.rope, ("q_rope", "k_rope"), q=made["q"], k=made["k"], **turn)
        read: dict[str, Any] = {"q": made["q_rope"], "k": made["k_rope"], "v": made["v"]}
        self._step(
            run, made, oracle.attention, ("attn_out",), **read, wo=weights.wo, **at, **_biases(weights, "bo")
        )
        made["ffn_inp"] = self._sum(self.x, made["attn_out"], run)
        norm("ffn_norm", made["ffn_inp"], weights.ffn_norm)
        matrices = {name: getattr(weights, name) for name in ("w_gate", "w_up", "w_down")}
        read = {"x": made["ffn_norm"]} | matrices
        if config.n_experts:
            read |= {"w_router": weights.w_router, "n_used": config.n_experts_used}
            self._step(run, made, _experts(chosen), ("ffn_out",), **read)
        else:
            read |= _biases(weights, "b_gate", "b_up", "b_down")
            self._step(run, made, oracle.swiglu, ("ffn_out",), **read)
        made["out"] = self.x = self._sum(made["ffn_inp"], made["ffn_out"], run)
        return made

    def head(self, run: RoundedRun) -> dict[str, Array]:
        made: dict[str, Array] = {}
        self._step(
            run, made, oracle.output_logits, ("logits",), x=self.x, weights=run.weights, config=run.config
        )
        return made

    def _step(
        self,
        run: RoundedRun,
        made: dict[str, Array],
        function: Any,
        points: tuple[str, ...],
        **arguments: Any,
    ) -> None:
        """Compute a step, what it shows as well, and put all of it off."""
        shown: dict[str, Array] = {}
        returned = function(**arguments, tap=shown.__setitem__)
        results = returned if isinstance(returned, tuple) else (returned,)
        shown |= dict(zip(points, results, strict=True))
        spreads = case_spreads(function.__name__, arguments, shown, run.dtype)
        made.update({p: _put_off(y, spreads[p], self.draw) for p, y in shown.items() if p in spreads})

    def _sum(self, a: Array, b: Array, run: RoundedRun) -> Array:
        return _put_off(a + b, sum_spread(a, b, run.dtype), self.draw)


def _experts(chosen: NDArray[np.int64] | None) -> Any:
    """The oracle's mixture, which goes through these experts whatever its scores say."""
    if chosen is None:
        return oracle.experts
    routed = {"routed": lambda right, router, n_used: (chosen, weights_of(router, chosen))}
    return PatchedOracle(routed).experts


def _biases(weights: Any, *names: str) -> dict[str, Any]:
    return {name: bias for name in names if (bias := getattr(weights, name, None)) is not None}


def _put_off(array: Array, spread: Spread, draw: np.random.Generator) -> Array:
    """Each element moved by a random number of its deviation, and by all that comes on top."""
    moved = array + draw.standard_normal(array.shape) * spread.deviation
    return moved if spread.most is None else moved + spread.most


def at_least(
    limit: Limit,
    o: ArrayLike,
    draws: Sequence[Mapping[str, Array]],
    point: str,
    mask: Any = None,
    margin: float = MARGIN,
    whole: float | None = None,
    element: float | None = None,
) -> Limit:
    """A total error's limit, no less than `margin` times what the draws are off at this point.

    Args:
        whole, element: the margins of the tensor as a whole and of an element, where those are others.
    """
    found = [measure(draw[point], o, mask) for draw in draws if point in draw]
    if not found or limit.exact:
        return limit

    def most(values: list[float], least: float, times: float | None = None) -> float:
        return max(least, (margin if times is None else times) * max(values))

    err = most([one.err for one in found], limit.err, whole)
    structure = STRUCTURE_FLOOR["total"] * err
    gain = most([abs(one.gain) / averaging(one.n_gain) for one in found], limit.gain)
    bias = most([abs(one.bias) / averaging(one.n) for one in found], limit.bias)
    return replace(
        limit,
        err=err,
        row_err=most([one.row_err for one in found], limit.row_err),
        element_err=most([one.element_err for one in found], limit.element_err, element),
        gain=max(gain, structure),
        bias=max(bias, structure),
        reason=f"{limit.reason}; on this model and prompt {margin:g} x what rounding at random comes to",
    )


def parted(limit: Limit, o: ArrayLike, without: Array, point: str, mask: Any = None) -> Limit:
    """A total error's limit, no less than how far two right runs of an arithmetic may part.

    How much of it right programs need, and where, stands in docs/arithmetic.md.

    Args:
        o: the run that rounds as declared; without: the same without the roundings.
    """
    whole = min(STEP, PARTED * (1 + CHANCE / math.sqrt(2 * max(np.size(o), 1))))
    return at_least(
        limit, o, [{point: without}], point, mask, margin=STEP, whole=whole, element=STEP * PARTED
    )
