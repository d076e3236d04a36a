"""Bugs with a number that no catalogue can list: an epsilon, a theta, a scale, found from the tensor itself.

Each is fitted by least squares and then tried like any other bug; it explains the tensor, or it is not
named. They are only asked when nothing of the catalogue explains it. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.diagnose.bugs import Bug
from llama_ckpt.diagnose.patched_oracle import RIGHT, Patch, PatchedOracle
from llama_ckpt.points import Case, split_name

__all__ = ["fitted_bugs"]

Array: TypeAlias = NDArray[np.float64]

GRID = 400
"""Values of a parameter that are tried before the best is refined."""


def fitted_bugs(point: str, x: ArrayLike, case: Case) -> Iterator[Bug]:
    """The bugs whose parameter can be fitted to the tensor `x` at `point`, an answer to `case`."""
    trial = np.asarray(x, dtype=np.float64)
    fits = FITS.get(case.function)
    if fits is not None and np.isfinite(trial).all():
        with np.errstate(all="ignore"):
            yield from fits(split_name(point)[1], trial, case.arguments)


def _epsilon(point: str, y: Array, given: Mapping[str, Any]) -> Iterator[Bug]:
    """y = x weight / sqrt(mean square + eps), a row at a time: the median of what eps must have been."""
    x = np.asarray(given["x"], np.float64)
    whole = x * np.asarray(given["weight"], np.float64)
    if y.shape != x.shape:
        return
    gain = np.sum(y * whole, axis=-1) / np.sum(whole * whole, axis=-1)
    eps = float(np.median(1 / gain**2 - np.mean(x * x, axis=-1)))
    if np.isfinite(eps) and eps > 0:
        sentence = f"the norm's epsilon is {eps:.3g}, not {given['eps']:.3g}"
        yield Bug("norm-eps-fitted", sentence, "1", "rms_norm", partial(_with_epsilon, eps))


def _with_epsilon(fitted: float, right: PatchedOracle, *args: Any, eps: float, **options: Any) -> Any:
    return right.rms_norm(*args, eps=fitted, **options)


def _angles(point: str, y: Array, given: Mapping[str, Any]) -> Iterator[Bug]:
    """The turn of each pair, against that of other positions, frequencies and thetas."""
    source = given["q" if point == "q_rope" else "k"]
    before, after = (np.asarray(a, np.float64) for a in (source, y))
    if before.shape != after.shape or len(after) < 2:
        return
    pairs = [a[..., 0::2] + 1j * a[..., 1::2] for a in (before, after)]
    turned = np.sum(pairs[1] * np.conj(pairs[0]), axis=1)  # [n, head_dim / 2]: weight and angle
    positions, f = np.asarray(given["positions"], np.float64), np.asarray(given["frequencies"], np.float64)
    exponents = np.arange(len(f)) / len(f)

    def misfit(at: Array, frequencies: Array) -> float:
        return -float(np.sum(np.real(turned * np.exp(-1j * at[:, None] * frequencies))))

    offset = min(range(-16, 17), key=lambda k: misfit(positions + k, f))
    yield _rope(f"RoPE's positions are off by {offset:+d}", "offset", positions + offset, f)
    log_theta = _smallest(
        lambda value: misfit(positions, np.exp(-value * exponents)), np.log(10), np.log(1e9)
    )
    theta = np.exp(-log_theta * exponents)
    yield _rope(f"RoPE's theta is {np.exp(log_theta):.6g}", "theta", positions, theta)
    log_factor = _smallest(lambda value: misfit(positions, f * np.exp(value)), -np.log(64), np.log(64))
    factor = np.exp(log_factor)
    yield _rope(f"RoPE's frequencies are multiplied by {factor:.6g}", "factor", positions, f * factor)


def _rope(sentence: str, what: str, positions: Array, frequencies: Array) -> Bug:
    def rope(right: PatchedOracle, q: Any, k: Any, at: Any = None, f: Any = None, **given: Any) -> Any:
        return right.rope(q, k, positions, frequencies)

    return Bug(f"rope-{what}-fitted", sentence, "1B", "rope", rope)


def _smallest(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where `cost` is smallest: the best of a grid, then nine tenths closer again and again."""
    best = float(min(np.linspace(low, high, GRID), key=cost))
    width = (high - low) / GRID
    for _ in range(12):
        best = float(min(np.linspace(best - width, best + width, 41), key=cost))
        width /= 10
    return best


def _scale(point: str, y: Array, given: Mapping[str, Any]) -> Iterator[Bug]:
    """Logarithms of probabilities are the scores times the scale, but for a constant of each row."""
    if point != "attn_probs":
        return
    names = ("q", "k", "v", "wo", "positions")
    shown: dict[str, Array] = {}
    RIGHT.attention(**{name: given[name] for name in names}, tap=shown.__setitem__)
    scores, probs = shown["attn_scores"], shown["attn_probs"]
    if probs.shape != y.shape:
        return
    slope = _slope(scores, y, (y > 1e-7) & (probs > 0))
    if np.isfinite(slope) and slope != 0:
        right_scale = np.asarray(given["q"]).shape[-1] ** -0.5
        sentence = f"the scores are multiplied by {slope:.6g}, not by {right_scale:.6g} = 1/sqrt(head_dim)"
        patch: Patch = partial(_with_scale, slope / right_scale)
        yield Bug("attention-scale-fitted", sentence, "3", "attention", patch)


def _slope(a: Array, probs: Array, used: NDArray[np.bool_]) -> float:
    """The slope of log(probs) over a, each row about its own mean."""
    n = np.maximum(used.sum(axis=-1, keepdims=True), 1)
    logs = np.log(np.where(used, probs, 1.0))
    centred = [
        np.where(used, v - np.sum(np.where(used, v, 0.0), -1, keepdims=True) / n, 0.0) for v in (a, logs)
    ]
    return float(np.sum(centred[0] * centred[1]) / np.sum(centred[0] ** 2))


def _with_scale(
    factor: float, right: PatchedOracle, q: Any, *args: Any, tap: Any = None, **options: Any
) -> Any:
    def shown(point: str, array: Any) -> None:
        if tap:
            tap(point, array / factor if point == "attn_scores" else array)

    return right.attention(np.asarray(q) * factor, *args, tap=shown, **options)


def _temperature(point: str, y: Array, given: Mapping[str, Any]) -> Iterator[Bug]:
    """Logarithms of what is kept are the logits over the temperature, but for a constant."""
    logits = np.asarray(given["logits"], np.float64)
    if logits.shape != y.shape:
        return
    slope = _slope(logits, y, y > 1e-7)
    if np.isfinite(slope) and slope > 0:
        sentence = f"the temperature is {1 / slope:.6g}, not {given.get('temperature', 1.0):.6g}"
        yield Bug(
            "softmax-temperature-fitted", sentence, "11", "softmax", partial(_with_temperature, 1 / slope)
        )


def _with_temperature(
    fitted: float, right: PatchedOracle, logits: Any, *, temperature: float = 1.0, **cuts: Any
) -> Any:
    return right.softmax(logits, temperature=fitted, **cuts)


FITS: Mapping[str, Callable[[str, Array, Mapping[str, Any]], Iterator[Bug]]] = {
    "rms_norm": _epsilon,
    "rope": _angles,
    "attention": _scale,
    "softmax": _temperature,
}
"""What can be fitted in a call of each function."""
