"""The oracle with the roundings that somebody declares, and exact beside them.

It is the Llama of `oracle.llama`: each of its steps is called and its result rounded, or what goes into it.
A line that says float32 changes nothing. So what is left between a program and this oracle is what float32
leaves, and whatever else is wrong. numpy only.

    rounded = rounded_oracle(PROFILES["llama.cpp-cpu"])
    rounded.swiglu(x, w_gate, w_up, w_down)          # as oracle.llama.swiglu
    rounded.logits(token_ids, weights, config=config, positions=positions)

A matrix of the file's own (`oracle.weights`) says its type, and what rows become before their product with
it follows from that; any other array counts as `weight_type`.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.formats import UNROUNDED, round_rows, rounded
from llama_ckpt.arithmetic.fused import fused
from llama_ckpt.arithmetic.products import (
    HALF_PRODUCTS,
    half_products,
    matrix_in_parts,
    rounded_matrix,
    summed,
)
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.arithmetic.rests import RESTS, product_in_parts, two_parts
from llama_ckpt.arithmetic.turns import FAST_TURNS, cos_and_sin
from llama_ckpt.oracle.patched_oracle import Patch, PatchedOracle

__all__ = ["rounded_oracle", "scaled_before"]

Array: TypeAlias = NDArray[np.float64]


def rounded_oracle(
    arithmetic: Arithmetic, *, weight_type: str = "F32", base: PatchedOracle | None = None
) -> PatchedOracle:
    """The oracle that rounds as declared.

    Args:
        arithmetic: what is rounded, and where.
        weight_type: the type of weights that come as plain arrays.
        base: what is rounded; None: the oracle as it is.
    """

    def product(right: PatchedOracle, a: Arithmetic, x: Array, w: Any, line: str = "products") -> Array:
        kind = getattr(w, "weight_type", None) or weight_type
        y = _product(right, a, x, w, kind, a.activation(kind, stream=line == "stream_products"))
        return rounded(y, getattr(a, line))

    steps: dict[str, Callable[..., Any]] = {
        "linear": lambda right, x, w: product(right, _for(arithmetic, x), x, w),
        "to_stream": lambda right, x, w: product(right, _for(arithmetic, x), x, w, "stream_products"),
        "head": lambda right, x, w: product(right, _for(arithmetic, x).for_head(), x, w),
        "scores": lambda right, q, k: _scores(right, _for(arithmetic, q), q, k),
        "scaled": lambda right, s, head_dim: rounded(right.scaled(s, head_dim), _for(arithmetic, s).scaled),
        "probabilities": lambda right, s: rounded(right.probabilities(s), _for(arithmetic, s).probabilities),
        "mixed": lambda right, probs, values: _mixed(right, _for(arithmetic, probs), probs, values),
    }
    steps |= {name: _bound(arithmetic, step) for name, step in _STEPS.items()}
    return PatchedOracle(steps, base)


def _for(arithmetic: Arithmetic, rows: Array) -> Arithmetic:
    return arithmetic.for_rows(rows.shape[-2] if np.ndim(rows) > 1 else 1)


def _bound(arithmetic: Arithmetic, step: Callable[..., Any]) -> Patch:
    rows = list(signature(step).parameters)[2]  # after the arithmetic and the oracle

    def patch(right: PatchedOracle, *args: Any, **options: Any) -> Any:
        tokens = args[0] if args else options[rows]
        return step(arithmetic.for_rows(len(tokens)), right, *args, **options)

    return patch


def _product(right: PatchedOracle, a: Arithmetic, x: Array, w: Any, weight_type: str, name: str) -> Array:
    """Rows rounded to `name` before their product with a weight, and the weight as it is read."""
    reading = a.reading(weight_type)
    if name in RESTS and reading in RESTS:
        return product_in_parts(right.linear, two_parts(x, name), matrix_in_parts(w, reading))
    if reading == HALF_PRODUCTS and (made := half_products(x, name, w)) is not None:
        return made
    rows = round_rows(x, name)
    matrix = rounded_matrix(w, reading)
    y = summed(right.linear, rows.values, matrix, a.sums(weight_type))
    minima = getattr(w, "minima", None)
    if rows.sums is not None and minima is not None:
        # A weight's minimum is multiplied by the sum that stands beside the integers.
        blocks = rows.values.reshape(*rows.sums.shape, -1).sum(axis=-1)
        y = y + (rows.sums - blocks) @ minima.T
    return y


def _scores(right: PatchedOracle, a: Arithmetic, queries: Array, keys: Array) -> Array:
    times = scaled_before(a, queries.shape[-1])
    if times != 1.0:  # the product has the scale, which `scaled` brings in
        queries, keys = (np.asarray(x * times, np.float32).astype(np.float64) for x in (queries, keys))
    made = right.scores(rounded(queries, a.queries), rounded(keys, a.keys))
    return rounded(made / (times * times), a.scores)


def scaled_before(a: Arithmetic, head_dim: int) -> float:
    """What queries and keys are multiplied by before they are rounded, each."""
    return 1.0 if a.scaling == "scores" else float(np.float32(head_dim**-0.25))


def _mixed(right: PatchedOracle, a: Arithmetic, probs: Array, values: Array) -> Array:
    kept = rounded(values, a.values)
    if a.keys_at_a_time:
        return rounded(fused(probs, kept, a.keys_at_a_time, a.mixing, a.mixed_sums), a.context)
    return rounded(right.mixed(rounded(probs, a.mixing), kept), a.context)


def _embed(a: Arithmetic, right: PatchedOracle, token_ids: Any, weight: Any, tap: Any = None) -> Array:
    return rounded(right.embed(token_ids, weight), a.embeddings)


def _rms_norm(
    a: Arithmetic, right: PatchedOracle, x: Any, weight: Any, *, eps: float, tap: Any = None
) -> Array:
    weight = rounded(np.asarray(weight, np.float64), a.norm_weights)
    if a.norm_scaled in UNROUNDED:
        return rounded(right.rms_norm(x, weight, eps=eps), a.norms)
    return rounded(rounded(right.rms_norm(x, 1.0, eps=eps), a.norm_scaled) * weight, a.norms)


def _cos_and_sin(
    a: Arithmetic, right: PatchedOracle, positions: Any, frequencies: Any
) -> tuple[Array, Array]:
    if a.turns == FAST_TURNS:
        return cos_and_sin(positions, frequencies, a.angles, fast=True)
    if a.angles == "float64":
        cos, sin = right.cos_and_sin(positions, frequencies)
    else:
        cos, sin = cos_and_sin(positions, frequencies, a.angles)
    return rounded(cos, a.turns), rounded(sin, a.turns)


def _turned(a: Arithmetic, right: PatchedOracle, x: Array, cos: Array, sin: Array) -> Array:
    if a.rotation in UNROUNDED:
        return rounded(right.turned(x, cos, sin), a.turned)
    zero = np.zeros_like(cos)
    along, across = right.turned(x, cos, zero), right.turned(x, zero, sin)
    return rounded(rounded(along, a.rotation) + rounded(across, a.rotation), a.turned)


def _gated(a: Arithmetic, right: PatchedOracle, gate: Array, up: Array) -> Array:
    if a.silu in UNROUNDED:
        return rounded(right.gated(gate, up), a.gated)
    return rounded(rounded(right.gated(gate, np.ones_like(up)), a.silu) * up, a.gated)


def _added(a: Arithmetic, right: PatchedOracle, x: Array, y: Array) -> Array:
    return rounded(right.added(x, y), a.residual)


_STEPS: dict[str, Callable[..., Any]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "cos_and_sin": _cos_and_sin,
    "turned": _turned,
    "gated": _gated,
    "added": _added,
}
