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
from llama_ckpt.diagnose.rope_fits import rope_bugs
from llama_ckpt.points import Case, split_name

__all__ = ["fitted_bugs"]

Array: TypeAlias = NDArray[np.float64]


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


NOTHING = 1e-6
"""A scale of so small a share of the right one leaves nothing of the scores."""


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
        if abs(slope) < NOTHING * right_scale:
            return  # all keys weigh the same: that is no scale
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
    "rope": rope_bugs,
    "attention": _scale,
    "softmax": _temperature,
}
"""What can be fitted in a call of each function."""
