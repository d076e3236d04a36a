"""The verdict on one point: a tensor on trial against the oracle and against llama.cpp.

With x the tensor on trial, o the oracle's on the same inputs, and r llama.cpp's: x passes when it is
there, of the right shape and dtype, finite, within its limits in every measure of `metrics`, and,
against a float32 dump, within the ladder's absolute limit of r. Where r itself is further from exact
than that, the oracle decides, and the verdict says that the reference is off. numpy only.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.json_values import finite
from llama_ckpt.judging.limits import MAY_BE_WIDER, Limit
from llama_ckpt.judging.metrics import Errors, causal_mask, element_errors, relative_error
from llama_ckpt.judging.sums import norm_of

__all__ = ["PointVerdict", "against_reference", "causal_mask", "judge", "problems"]

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class PointVerdict:
    """What is known about one point, and whether it passes.

    Attributes:
        name: the full name of the point, `blk.3.q`.
        error_kind: "own" where the inputs were recorded ones, "total" where they were its own.
        verdict: "pass" or "fail".
        blame: who is off: "yours", "reference", "noise" (they differ, neither beyond rounding),
            "tie" (a greedy token decided by less than the noise), "" (nobody).
        reason: a sentence.
        err, err_reference, distance: relative errors; NaN where there is nothing to compute them from.
        max_abs: the largest |x - r|, or |x - o| where there is no r; `index` is where, `got` what x
            holds there and `wanted` what r or o holds.
        limit: the limit on `err`, 0.0 where equality is asked; `max_abs_limit` the one on `max_abs`.
        n_differ: how many elements are beyond their limit, of `n_judged`.
        worst_row_err, worst_row: the largest error of a token's row, and which token.
        gain: the slope of x fitted to o; `bias`: mean(x - o) / rms(o).
        nearest: the metric that uses most of its limit ("err", "row_err", "element_err", "gain", "bias"),
            and `share`, how much of it; "" and NaN where equality is asked or nothing was measured.
        closer: who is closer to exact, "yours", "reference", "equal", or "" without r.
        inherited: a total error beyond its limit came with the inputs; it passes, none is made here.
        variant: "untapped" where the function was not asked to show its steps and so took its fused path,
            which shows only what it returns; "last row" where the recording holds no more; "" otherwise.
        arithmetic: whose roundings llama.cpp's tensor was held to where it is off; "" where it was not.
        costs, left: relative, what these roundings cost in this step, and what llama.cpp is off beside them.
        explained: whether what is left is float32's; else a kernel of llama.cpp is wrong, or the recording.
    """

    name: str
    error_kind: str
    verdict: Literal["pass", "fail"]
    blame: Literal["", "yours", "reference", "noise", "tie"]
    reason: str
    err: float = math.nan
    err_reference: float = math.nan
    distance: float = math.nan
    max_abs: float = math.nan
    index: tuple[int, ...] | None = None
    got: float = math.nan
    wanted: float = math.nan
    limit: float = math.nan
    max_abs_limit: float = math.nan
    n_differ: int = 0
    n_judged: int = 0
    worst_row_err: float = math.nan
    worst_row: int | None = None
    gain: float = math.nan
    bias: float = math.nan
    nearest: str = ""
    share: float = math.nan
    closer: Literal["", "yours", "reference", "equal"] = ""
    inherited: bool = False
    variant: Literal["", "untapped", "last row"] = ""
    arithmetic: str = ""
    costs: float = math.nan
    left: float = math.nan
    explained: bool | None = None

    @property
    def shown_name(self) -> str:
        """The name for a reader: "blk.3.out", "blk.3.out (untapped)"."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

    def with_arithmetic(
        self, reason: str, arithmetic: str, costs: float, left: float, *, explained: bool
    ) -> PointVerdict:
        """With what llama.cpp's roundings come to."""
        facts: dict[str, Any] = {"arithmetic": arithmetic, "costs": costs, "left": left}
        return dataclasses.replace(self, reason=reason, explained=explained, **facts)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; a number that JSON cannot hold (NaN, Inf) becomes None."""
        plain: dict[str, Any] = finite(dataclasses.asdict(self))
        return plain


def judge(
    name: str,
    x: ArrayLike | None,
    o: ArrayLike,
    *,
    limit: Limit,
    r: ArrayLike | None = None,
    max_abs: float | None = None,
    mask: Mask | None = None,
    dtype: str | None = None,
) -> PointVerdict:
    """Judge the tensor `x` at point `name`.

    Args:
        x: the tensor on trial; None where it is missing, which fails.
        o: the oracle's, float64.
        limit: what `limits.limit_for` gives for this point, precision and error_kind.
        r: llama.cpp's, float32, or None.
        max_abs: the ladder's absolute limit against r, times max(1, max|r|); it holds in float32 and
            own errors only. None where there is none.
        mask: broadcasts to the shape; only where it is True is anything judged.
        dtype: x's own dtype where numpy cannot show it ("bfloat16" handed over as float32).
    """
    refused = _refusal(name, x, o, r, limit, mask, dtype)
    if refused is not None:
        return refused
    trial, oracle = np.asarray(x, np.float64), np.asarray(o, np.float64)
    reference = None if r is None else np.asarray(r, np.float64)
    judged = np.ones(oracle.shape, bool) if mask is None else np.broadcast_to(mask, oracle.shape)
    found = limit.measure(trial, oracle, mask)
    facts = _facts(name, trial, oracle, reference, mask, limit, found)
    if limit.exact:
        return _exact(facts, trial, oracle, reference, judged, limit)
    wrong = problems(found, limit)
    if wrong:
        return dataclasses.replace(facts, verdict="fail", blame="yours", reason="; ".join(wrong))
    if reference is None:
        reason = f"error {facts.err:.1e} within the allowed {facts.limit:.1e}; llama.cpp: not compared"
        return dataclasses.replace(facts, reason=reason)
    if max_abs is not None and limit.error_kind == "own" and limit.dtype == "float32":
        facts = dataclasses.replace(facts, max_abs_limit=max_abs * max(1.0, _largest(reference, judged)))
    theirs, own = _largest(reference - oracle, judged), _largest(trial - oracle, judged)
    return against_reference(facts, theirs, own)


def _refusal(
    name: str,
    x: ArrayLike | None,
    o: ArrayLike,
    r: ArrayLike | None,
    limit: Limit,
    mask: Mask | None,
    dtype: str | None,
) -> PointVerdict | None:
    """The failure of an x that cannot be measured: missing, of the wrong dtype or shape, not finite."""

    def fail(reason: str, **facts: Any) -> PointVerdict:
        return PointVerdict(name, limit.error_kind, "fail", "yours", reason, limit=limit.err, **facts)

    if x is None:
        return fail("missing: the tensor was never given")
    trial, oracle = np.asarray(x), np.asarray(o, np.float64)
    dtype = dtype or trial.dtype.name
    if not _right_dtype(dtype, limit):
        return fail(f"wrong dtype: got {dtype}, wanted {limit.dtype}")
    if trial.shape != oracle.shape:
        return fail(f"wrong shape: got {list(trial.shape)}, wanted {list(oracle.shape)}")
    if r is not None and np.shape(r) != oracle.shape:
        reason = f"llama.cpp's tensor is {list(np.shape(r))}, the oracle's {list(oracle.shape)}"
        return dataclasses.replace(fail(reason), blame="reference")
    judged = np.ones(oracle.shape, bool) if mask is None else np.broadcast_to(mask, oracle.shape)
    if not judged.any():
        return fail(f"nothing to compare in the shape {list(oracle.shape)}")
    for array, whose in ((oracle, "the oracle's own tensor, so some input,"), (trial, "it")):
        bad = judged & ~np.isfinite(array)
        if bad.any():
            at = _first(bad)
            reason = f"{whose} is not finite: {array[at]} first at {list(at)}, {bad.sum()} of {judged.sum()}"
            found = {"index": at, "got": float(trial[at]), "wanted": float(oracle[at])}
            return fail(reason, n_differ=int(bad.sum()), n_judged=int(judged.sum()), **found)
    return None


def _right_dtype(dtype: str, limit: Limit) -> bool:
    """Token ids may be of any integer type, and what is only looked at may be wider than the layer."""
    if limit.dtype == "integer":
        return dtype.startswith(("int", "uint"))
    return dtype == limit.dtype or (dtype == "float32" and limit.point in MAY_BE_WIDER)


def _first(where: Mask) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), where.shape))


def _largest(array: Array, judged: Mask) -> float:
    return float(np.max(np.abs(array), where=judged, initial=0.0))


def _facts(
    name: str, x: Array, o: Array, r: Array | None, mask: Mask | None, limit: Limit, found: Errors
) -> PointVerdict:
    """Every figure of the verdict; it passes without a reason until something is found."""
    against = o if r is None else r
    difference = np.abs(x - against)
    if mask is not None:
        difference = np.where(mask, difference, -1.0)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(difference)), x.shape))
    nearest, share = limit.nearest(found)
    facts = PointVerdict(
        name,
        limit.error_kind,
        "pass",
        "",
        "",
        err=found.err,
        max_abs=float(difference[index]),
        index=index,
        got=float(x[index]),
        wanted=float(against[index]),
        limit=limit.err,
        n_differ=_differing(x, o, mask, limit, found),
        n_judged=found.n,
        worst_row_err=found.row_err,
        worst_row=found.row,
        gain=1.0 + found.gain,
        bias=found.bias,
        nearest=nearest,
        share=share,
    )
    if r is None:
        return facts
    if mask is not None:
        x, o, r = (np.where(mask, array, 0.0) for array in (x, o, r))
    theirs = relative_error(r, o)
    apart, norm = norm_of(x - r), norm_of(o) or 1.0
    closer: Literal["equal", "yours", "reference"] = "yours" if found.err < theirs else "reference"
    if found.err == theirs:
        closer = "equal"
    return dataclasses.replace(facts, err_reference=theirs, distance=apart / norm, closer=closer)


def _differing(x: Array, o: Array, mask: Mask | None, limit: Limit, found: Errors) -> int:
    """How many elements are further off than they may be."""
    if limit.exact:
        differ = x != o
        return int((differ if mask is None else differ & mask).sum())
    allowed = limit.element_err if limit.elements is None else found.element_allowed
    if found.element_err < 0.999 * allowed:  # the one that is furthest off for what it is allowed
        return 0
    each = limit.element_err if limit.elements is None else limit.elements
    return int((element_errors(x, o, mask) > each).sum())


def problems(found: Errors, limit: Limit) -> list[str]:
    """A phrase for each limit that is broken."""
    words = {"err": "error", "gain": "gain off by", "turn": "turned too far or too little by"}
    where = {"row_err": f" (token {found.row})"}
    if found.turn is not None:
        where["turn"] = f" (radians, pair {found.turn.pair})"
    return [
        f"{words.get(metric, metric)} {got:.2e} > allowed {most:.2e}{where.get(metric, '')}"
        for metric, (got, most) in limit.measured(found).items()
        if not got <= most
    ]


def _exact(
    facts: PointVerdict, x: Array, o: Array, r: Array | None, judged: Mask, limit: Limit
) -> PointVerdict:
    """Equal or not: to the oracle, and to llama.cpp, since where nothing is rounded both are the same."""
    for other, whose in ((o, "the oracle"), (r, "llama.cpp")):
        if other is None:
            continue
        differ = judged & (x != other)
        if differ.any():
            at, n = _first(differ), int(differ.sum())
            got, wanted = float(x[at]), float(other[at])
            facts = dataclasses.replace(facts, index=at, got=got, wanted=wanted, n_differ=n)
            reason = f"{n} of {facts.n_judged} differ from {whose}, first at {list(at)}"
            blame: Literal["yours", "reference"] = "yours" if other is o else "reference"
            return dataclasses.replace(facts, verdict="fail", blame=blame, reason=reason)
    return dataclasses.replace(facts, reason="equal" if r is not None else "equal; llama.cpp: not compared")


def against_reference(facts: PointVerdict, theirs: float, own: float) -> PointVerdict:
    """The last word on an x that the oracle finds right: is it also where llama.cpp is?

    Args:
        facts: its figures.
        theirs, own: the largest difference of llama.cpp's and of its own from what is exact.
    """
    within = f"error {facts.err:.1e} within the allowed {facts.limit:.1e}"
    most = facts.max_abs_limit
    if not math.isfinite(theirs):
        reason = f"{within}; llama.cpp's tensor is not finite; judged by the oracle"
        return dataclasses.replace(facts, blame="reference", reason=reason)
    if facts.max_abs > most:
        # Two tensors more than a limit apart cannot both be within half of it of what is exact.
        if theirs <= most and own > most / 2:
            reason = f"max|x - llama.cpp| {facts.max_abs:.2e} > allowed {most:.2e}"
            return dataclasses.replace(facts, verdict="fail", blame="yours", reason=reason)
        reason = f"{within}; llama.cpp is {theirs:.1e} from exact, yours {own:.1e}; judged by the oracle"
        return dataclasses.replace(facts, blame="reference", reason=reason)
    if facts.err_reference > facts.limit:
        reason = f"{within}; llama.cpp is further off than this precision needs: {facts.err_reference:.1e}"
        return dataclasses.replace(facts, blame="reference", reason=reason)
    return dataclasses.replace(facts, blame="noise" if facts.distance else "", reason=within)
