"""How far from exact a correct program may be.

An own error has a limit that follows from the data: `rounding` says from a step's own inputs how far
rounding may put each element, `within` multiplies that by three constants, ERR, ROW and ELEMENT. In this
unit right programs hardly differ: over shapes, lengths, means, outliers, dtypes and orders of summation
the largest were 0.7, 0.9 and 2.5 (`tools/measure_rounding.py`).

What has no such theory has a limit from a table: gain and bias, which rounding has none of; total errors;
the engine; probabilities to sample from. There a limit is `MARGIN` times the largest error that was
measured of a correct program: the layers here and a plain program, in several summation orders, over
several shapes and ten seeds. `tools/measure_limits.py` measures again and writes `measured_errors.json`;
a test measures a sample of it, so that neither a limit too tight nor one that was loosened by hand gets
through.

What counts as correct in half precision: weights and inputs rounded to it, products summed in float32,
every result rounded to it. The oracle gets the rounded inputs, but the model's own weights: rounding
those is part of the precision's error, as it is of what users see. A program that sums in half
precision is outside. Quantized weights have no limits of their own: both sides compute with the
dequantized values, whatever the format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.errors import OptionError
from llama_ckpt.judging.directions import gain_and_bias
from llama_ckpt.judging.measured import ENGINE, LAYERS
from llama_ckpt.judging.measured import Errors as Measured
from llama_ckpt.judging.metrics import (
    Errors,
    averaging,
    element_scale,
    flat_rows,
    gain_elements,
    measure,
    row_scale,
)
from llama_ckpt.judging.rounding_steps import MODE, PRECISIONS
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.turns import TurnLimit, sideways
from llama_ckpt.points import ALL_POINTS, split_name
from llama_ckpt.precisions import ENGINE_PRECISIONS

__all__ = [
    "ELEMENT",
    "ERR",
    "EXACT",
    "MARGIN",
    "MAY_BE_WIDER",
    "MEASURED_LAYERS",
    "ON_CUDA",
    "ROW",
    "STRUCTURE_FLOOR",
    "ErrorKind",
    "Limit",
    "directed",
    "follows",
    "is_measured",
    "limit_for",
    "turn_limit",
    "with_mode",
    "unmeasured",
    "within",
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

ERR, ROW, ELEMENT = 2.0, 2.5, 6.0
"""What a tensor's, a row's and an element's error may be of what `rounding` expects there, as norms."""

WITHIN_FLOOR = 1 / 32
"""The same where limits follow from the data, which tell most of what lends errors a direction."""

STRUCTURE = 3.0
"""What a gain or a bias may be of what `directions` expects."""

EXACT = {
    "token_ids": "integers: equal or not",
    "greedy_tokens": "integers: equal or not",
    "ffn_chosen": "integers: equal or not, where the router's scores are no near tie",
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
        rows, elements: what each row and each element is allowed, flat as `metrics.flat_rows` has them,
            where that follows from the data; row_err and element_err are then the largest of them.
        turn: what RoPE's angles may be off by; None where nothing was turned, or no more is known of it.
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
    rows: NDArray[np.float64] | None = field(default=None, compare=False)
    elements: NDArray[Any] | None = field(default=None, compare=False)
    turn: TurnLimit | None = field(default=None, compare=False)

    @property
    def exact(self) -> bool:
        """True where nothing but equality passes."""
        return self.err == 0.0

    @property
    def uniform(self) -> Limit:
        """The same for every row and element: what a tensor of other values than the oracle's is held to."""
        if self.rows is None and self.elements is None:
            return self
        return replace(self, rows=None, elements=None)

    def of_rows(self, part: Any) -> Limit:
        """The uniform one of some rows."""
        return replace(self.uniform, turn=None if self.turn is None else self.turn.rows(part))

    def measure(self, x: ArrayLike, o: ArrayLike, mask: Any = None) -> Errors:
        """x against o; the worst row, element and angle are those that use most of what they are allowed."""
        found = measure(x, o, mask, rows=self.rows, elements=self.elements)
        if self.turn is None:
            return found
        return replace(found, turn=self.turn.worst(sideways(x, o, self.turn.angles.pairs)))

    def measured(self, found: Errors) -> dict[str, tuple[float, float]]:
        """Each of the metrics' errors, as it is held against the limit, and what is allowed there."""
        row = self.row_err if self.rows is None else found.row_allowed
        element = self.element_err if self.elements is None else found.element_allowed
        turn = {} if found.turn is None else {"turn": (found.turn.got, found.turn.allowed)}
        return {
            "err": (found.err, self.err),
            "row_err": (found.row_err, row),
            "element_err": (found.element_err, element),
            "gain": (abs(found.gain), self.gain * averaging(found.n_gain)),
            "bias": (abs(found.bias), self.bias * averaging(found.n)),
            **turn,
        }

    def nearest(self, found: Errors) -> tuple[str, float]:
        """The metric that uses most of what it is allowed, and its share; "" and NaN where all are 0."""
        shares = {metric: got / most for metric, (got, most) in self.measured(found).items() if most > 0}
        return max(shares.items(), key=lambda one: one[1], default=("", math.nan))


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
        error_from: where the error of a correct program comes from, at a point that no model here has:
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
    why = ALL_POINTS[point].error_from if point in ALL_POINTS else error_from
    why = f"{why}; " if why else ""
    why += f"{MARGIN:g} x the largest of {measured.on}: {largest[0]:.2g}"
    why += f", x {deeper:.3g} for {n_layers} layers" if deeper > 1 else ""
    err, row_err, element_err, gain, bias = (MARGIN * deeper * value for value in largest)
    gain = max(gain, MARGIN * ON_CUDA.get((dtype, error_kind, point), 0.0))
    floor = STRUCTURE_FLOOR[error_kind] * err
    dtype = "float32" if engine else dtype
    return Limit(point, dtype, error_kind, err, row_err, element_err, max(gain, floor), max(bias, floor), why)


def within(limit: Limit, spread: Spread, o: ArrayLike, mask: Any = None) -> Limit:
    """An own error's limit, as it follows from the data.

    Args:
        limit: the table's: of it stay gain and bias, which rounding has none of, and no wider than the data
            allow.
        spread: what rounding may leave in the tensor.
        o: the oracle's; mask: where it is judged.
    """
    if limit.exact:
        return limit
    exact, judged = flat_rows(o, mask)
    deviation = _flat(spread.deviation, np.shape(o), judged)
    most = 0.0 if spread.most is None else _flat(spread.most, np.shape(o), judged)
    rows_scale = row_scale(exact)
    off = np.linalg.norm(deviation, axis=1)
    together = 0.0 if spread.together is None else _norms(_flat(spread.together, np.shape(o), judged))
    rows = (with_mode(ROW, off, together) + _norms(most)) / rows_scale
    elements = (ELEMENT * deviation + most) / element_scale(exact, rows_scale, judged)
    norm = float(np.linalg.norm(exact)) or 1.0
    allowed = with_mode(ERR, float(np.linalg.norm(off)), float(np.max(together, initial=0.0)))
    err = (allowed + float(np.linalg.norm(most))) / norm
    half = PRECISIONS[limit.dtype].half > 0
    gain, bias = directed(
        limit,
        err,
        gain_and_bias(exact, deviation, spread, half=half),
        floor=float(np.linalg.norm(deviation)) / norm,
        turned=float(np.linalg.norm(most)) / norm,
        lean=spread.lean / (norm * math.sqrt(exact.size)),
    )
    return replace(
        follows(limit, err, float(rows.max()), float(elements.max())),
        gain=gain / averaging(gain_elements(exact)),
        bias=bias / averaging(float(judged.sum())),
        rows=rows,
        elements=elements,
        turn=turn_limit(spread, o),
    )


def with_mode(times: float, off: Any, mode: Any) -> Any:
    """What errors of a norm `off` may come to, where a part of it is a row's mode.

    Args:
        times: what is allowed of the rest. mode: the norm of a row's mode, or of the largest of several rows.
    """
    return np.sqrt((times * off) ** 2 + (MODE**2 - times**2) * mode**2)


def turn_limit(spread: Spread, o: ArrayLike) -> TurnLimit | None:
    """What the angles of a tensor, or of some of its rows, may be off by; None where nothing was turned."""
    if spread.angles is None:
        return None
    return TurnLimit.of(o, spread.deviation, spread.angles)


def follows(limit: Limit, err: float, row_err: float, element_err: float) -> Limit:
    """A table's limit with what the data allow of errors; the arguments' names are those of `Limit`."""
    reason = f"{limit.reason.partition(';')[0]}; {ERR:g} x what rounding may leave of these inputs"
    return replace(limit, err=err, row_err=row_err, element_err=element_err, reason=reason)


def directed(
    limit: Limit, err: float, expected: tuple[float, float], *, floor: float, turned: float, lean: float
) -> tuple[float, float]:
    """What gain and bias may be: no more than the error, and as much as errors that point one way come to.

    Args:
        limit: the table's. err: what is allowed of the error.
        expected: what `directions` expects of both.
        floor, turned: the norms of the deviation and of what comes on top, over the tensor's.
        lean: of the spread, as a bias.
    """
    gain, bias = (STRUCTURE * one for one in expected)
    gain += turned**2 / 2  # at right angles to what is turned: hardly a gain
    bias += lean
    floor *= WITHIN_FLOOR * ERR
    on_cuda = MARGIN * ON_CUDA.get((limit.dtype, "own", limit.point), 0.0)
    return min(err, max(gain, floor, on_cuda)), min(err, max(bias, floor))


def _flat(array: ArrayLike, shape: tuple[int, ...], judged: NDArray[np.bool_]) -> NDArray[np.float64]:
    wide = np.broadcast_to(np.asarray(array, np.float64), shape).reshape(judged.shape)
    return np.where(judged, wide, 0.0)


def _norms(array: Any) -> Any:
    return np.linalg.norm(array, axis=1) if np.ndim(array) else 0.0


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


def _largest(point: str, dtype: str, error_kind: ErrorKind) -> Measured | None:
    """The largest errors measured of a correct program; None where none were."""
    table = (ENGINE if dtype in ENGINE_PRECISIONS else LAYERS).errors
    return table.get(dtype, {}).get(error_kind, {}).get(point)
