"""How far from exact a correct program may be: one table, from measurement.

A limit is `MARGIN` times the largest error that was measured of a correct program: the layers here and a
plain program, in several summation orders, over several shapes and ten seeds. `tools/measure_limits.py`
measures again and writes `measured_errors.json`; a test measures a sample of it, so that neither a limit
too tight nor one that was loosened by hand gets through.

What counts as correct in half precision: weights and inputs rounded to it, products summed in float32,
every result rounded to it. The oracle gets the rounded inputs, but the model's own weights: rounding
those is part of the precision's error, as it is of what users see. A program that sums in half
precision is outside. Quantized weights have no limits of their own: both sides compute with the
dequantized values, whatever the format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llama_ckpt.errors import OptionError
from llama_ckpt.judging.measured import ENGINE, LAYERS, Errors
from llama_ckpt.points import POINTS, split_name
from llama_ckpt.precisions import ENGINE_PRECISIONS

__all__ = [
    "EXACT",
    "MARGIN",
    "MAY_BE_WIDER",
    "MEASURED_LAYERS",
    "ON_CUDA",
    "STRUCTURE_FLOOR",
    "ErrorKind",
    "Limit",
    "is_measured",
    "limit_for",
    "unmeasured",
]

ErrorKind = Literal["own", "total"]

MARGIN = 4.0
"""A limit is this many times the largest error measured: for seeds, shapes and machines not tried."""

MEASURED_LAYERS = 32
"""Depth of the models that the total errors were measured on."""

MAY_BE_WIDER = frozenset({"attn_scores", "attn_probs"})
"""Points that a half-precision layer only shows, never hands on: float32 is right there too."""

STRUCTURE_FLOOR = {"own": 1 / 16, "total": 1 / 4}
"""A gain or bias is never held to less than this share of the limit on err. Rounding has no direction of
its own, but weights that share one lend it theirs; in total, every layer before has done so."""

ON_CUDA = {("float32", "own", "attn_out"): 3.9e-7}
"""Gains that a correct program has on a GPU alone: torch's fused float32 attention there is too large by so
much, some three roundings, the same in every element (300 tokens, heads of 128, H200; docs/full_size.md)."""

EXACT = {
    "token_ids": "integers: equal or not",
    "greedy_tokens": "integers: equal or not",
    "last_logits": "a row is picked, nothing is computed",
}
"""Points where nothing is rounded in any precision, and why."""


MEASURE = "run `python -m tools.measure_limits`"
"""What to do about a limit that is missing."""


@dataclass(frozen=True)
class Limit:
    """The largest errors that pass at one point; `metrics` has the formulas.

    Attributes:
        point: its neutral name, without a block's number.
        dtype: the dtype that the tensor must have; "integer" for token ids.
        error_kind: "own" or "total".
        err, row_err, element_err: of the whole tensor, of a token's row, of an element.
        gain, bias: of a tensor of 4,096 elements; `metrics.averaging` widens them for fewer.
        reason: why it is what it is, a sentence.
    """

    point: str
    dtype: str
    error_kind: ErrorKind
    err: float
    row_err: float
    element_err: float
    gain: float
    bias: float
    reason: str

    @property
    def exact(self) -> bool:
        """True where nothing but equality passes."""
        return self.err == 0.0


def limit_for(
    name: str, dtype: str, error_kind: ErrorKind, *, n_layers: int = MEASURED_LAYERS, error_from: str = ""
) -> Limit:
    """The limit at a point.

    Args:
        name: full or neutral name of the point; "sampling.2" counts as "sampling".
        dtype: what the program computes in, one of DTYPES, or a precision of the engine.
        error_kind: "own" where inputs are recorded ones, "total" where the model runs by itself.
        n_layers: depth of the model. Independent roundings add up like a random walk, so a deeper
            one than was measured gets sqrt(n_layers / 32) of the total limit; a shallower
            one gets the limit of 32 layers.
        error_from: where the error of a correct program comes from, at a point that `POINTS` does not have:
            the checkpoint's record says it.

    Raises:
        OptionError: a point, precision or error_kind that is not in the table.
    """
    point = _neutral(name)
    if point in EXACT:
        wanted = "float32" if point == "last_logits" else "integer"
        return Limit(point, wanted, error_kind, 0.0, 0.0, 0.0, 0.0, 0.0, f"exact: {EXACT[point]}")
    if point == "sampling":  # chosen from logits in float32, whatever made them
        dtype, error_kind = "float32", "own"
    engine = dtype in ENGINE_PRECISIONS
    measured = ENGINE if engine else LAYERS
    largest = _largest(point, dtype, error_kind)
    if largest is None:
        raise OptionError(
            "limit", got=f"{point}, {dtype}, {error_kind}", wanted="a row of the table", hint=MEASURE
        )
    deeper = math.sqrt(max(1.0, n_layers / MEASURED_LAYERS)) if error_kind == "total" else 1.0
    why = POINTS[point].error_from if point in POINTS else error_from
    why = f"{why}; " if why else ""
    why += f"{MARGIN:g} x the largest of {measured.on}: {largest[0]:.2g}"
    why += f", x {deeper:.3g} for {n_layers} layers" if deeper > 1 else ""
    err, row_err, element_err, gain, bias = (MARGIN * deeper * value for value in largest)
    gain = max(gain, MARGIN * ON_CUDA.get((dtype, error_kind, point), 0.0))
    floor = STRUCTURE_FLOOR[error_kind] * err
    dtype = "float32" if engine else dtype
    return Limit(point, dtype, error_kind, err, row_err, element_err, max(gain, floor), max(bias, floor), why)


def is_measured(name: str, dtype: str, error_kind: ErrorKind) -> bool:
    """Whether `limit_for` has a limit there: a checkpoint's own point has none before it is measured."""
    point = _neutral(name)
    return point in EXACT or point == "sampling" or _largest(point, dtype, error_kind) is not None


def unmeasured(name: str, dtype: str, error_kind: ErrorKind) -> Limit:
    """What stands for a limit where none was measured: every measure is NaN, so that nothing passes."""
    point, nan = _neutral(name), math.nan
    reason = f"no limit was measured for {point} in {dtype}: {MEASURE}"
    dtype = "float32" if dtype in ENGINE_PRECISIONS else dtype
    return Limit(point, dtype, error_kind, nan, nan, nan, nan, nan, reason)


def _neutral(name: str) -> str:
    return split_name(name)[1].split(".")[0]


def _largest(point: str, dtype: str, error_kind: ErrorKind) -> Errors | None:
    """The largest errors measured of a correct program; None where none were."""
    table = (ENGINE if dtype in ENGINE_PRECISIONS else LAYERS).errors
    return table.get(dtype, {}).get(error_kind, {}).get(point)
