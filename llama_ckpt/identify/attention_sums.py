"""What else was done to scores and sums: more terms, another scale, a cap, another axis, rounding.

numpy only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.attending import Attending, Mask, softmax
from llama_ckpt.identify.rounded import FORMATS
from llama_ckpt.judging.evidence import FINEST
from llama_ckpt.judging.matching import distance
from llama_ckpt.listing import listed, some

__all__ = ["Mixture", "in_the_sum", "of_the_scores", "over_heads", "rounded_steps"]

Array: TypeAlias = NDArray[Any]

LANES = (8, 16, 32, 64, 128, 256)
"""Tiles that keys are padded to."""


LOST = 1e-6
"""A slope of so small a share of the scale leaves nothing of the scores."""


@dataclass(frozen=True)
class Mixture:
    """Probabilities `[heads, rows, keys]`, and how to say them; attributes as in `Guess`.

    Attributes:
        unknown: whether values that nobody recorded were mixed in, so that the context cannot be told.
    """

    kind: str
    words: str
    probs: Array
    free: int = 1
    code: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    unknown: bool = False
    tells: str = ""


def in_the_sum(one: Attending, mass: Array, seen: Mask) -> Iterator[Mixture]:
    """What takes the part of each row's sum that its keys do not have.

    Args:
        mass: what the keys seen have of the sum, `[heads, rows]`.
    """
    shares = softmax(one.scaled, seen)
    masked = np.where(seen, one.scaled, -np.inf)
    most = masked.max(axis=-1)
    terms = np.exp(masked - most[..., None]).sum(axis=-1)  # in units of the largest
    more = (1 / mass - 1) * terms
    lanes = more * np.exp(most)
    yield from _lanes(one, lanes, shares, terms, most)
    count = float(np.median(more))
    if abs(count) > 1e-6:
        sums = terms + count
        words = f"the softmax's sum has {_counted(count)} as large as each row's largest"
        yield Mixture("attention.sum", words, shares * (terms / sums)[..., None], 1, "padding lanes")
    sinks = np.median(lanes, axis=1)
    if len(sinks) > 1 and (sinks > 0).all():
        words = f"each head's sum has a term of its own, a sink: exp of {some(_short(np.log(sinks)), 8)}"
        sums = terms + sinks[:, None] * np.exp(-most)
        parameters = {"sinks": np.log(sinks).tolist()}
        code = "attention sinks, which Llama has not"
        yield Mixture(
            "attention.sum", words, shares * (terms / sums)[..., None], len(sinks), code, parameters
        )
    if ((mass > 0) & (mass < 1 + 1e-3)).all():
        least, highest = float((1 - mass).min()), float((1 - mass).max())
        words = f"keys that were not recorded take {100 * max(least, 0):.2g}% to {100 * highest:.2g}% of each"
        words += " row's sum: padding is seen, or what an earlier call left in the cache"
        tells = "the probabilities of all keys, or the length of the cache"
        made = shares * mass[..., None]
        parameters = {"mass": np.mean(1 - mass, axis=0).tolist()}
        code = "the mask does not cover padding on the left, or the cache is not reset"
        yield Mixture(
            "attention.extra-keys", words, made, mass.size, code, parameters, unknown=True, tells=tells
        )


def _lanes(one: Attending, lanes: Array, shares: Array, terms: Array, most: Array) -> Iterator[Mixture]:
    """Terms of a score of 0, the same number in each row, or as many as fill a tile."""
    count = float(np.median(lanes))
    whole = round(count)
    near = whole if whole and abs(count / whole - 1) < 1e-2 else count
    n = one.n
    if abs(near) > 1e-6:
        tiles = [tile for tile in LANES if near > 0 and (n + near) % tile == 0]
        up = f", the lanes up to a multiple of {tiles[-1]} keys" if tiles else ""
        words = f"the softmax's sum has {_counted(near)} of a score of 0{up}: padding counts in it"
        sums = terms + near * np.exp(-most)
        made = shares * (terms / sums)[..., None]
        yield Mixture("attention.sum", words, made, 1, "padding lanes in the sum", {"terms": near})
    seen = one.visible.sum(axis=1)
    for tile in LANES:
        missing = (-seen) % tile
        sums = terms + missing * np.exp(-most)
        words = (
            f"lanes up to the next multiple of {tile} keys count in the softmax's sum, each as a score of 0"
        )
        made = shares * (terms / sums)[..., None]
        yield Mixture("attention.sum", words, made, 1, "padding lanes in the sum", {"tile": tile})
        hidden = (-n) % tile + n - seen
        sums = terms + hidden * np.exp(-most)
        words = f"hidden keys and the lanes up to the next multiple of {tile} keys count in the softmax's sum"
        made = shares * (terms / sums)[..., None]
        yield Mixture("attention.sum", words, made, 1, "padding lanes in the sum", {"tile": tile})


def _counted(count: float) -> str:
    if count == round(count) and count > 0:
        return f"{count:.0f} more term{'s' * (count > 1)}"
    return f"{count:.4g} more terms"


def _short(values: Any) -> list[str]:
    return [f"{value:.3g}" for value in values]


def of_the_scores(one: Attending, probs: Array) -> Iterator[Mixture]:
    """Another scale for all, for each head or row; a cap; a slope with distance; another axis."""
    seen = one.visible
    logs = np.log(np.where(probs > 0, probs, 1.0))
    used = (probs > 1e-30) & seen
    scale = one.scale
    slopes = _Slopes(one.scores, logs, used)
    every = float(slopes.over(None))
    if abs(every) < LOST * scale:
        words = "every key that a row sees has the same weight: what the scores said is lost"
        code = "a mask of another meaning, so large a number added that scores are rounded away"
        yield Mixture(
            "attention.scale", words, softmax(np.zeros_like(one.scores), seen), 0, code, {"scale": 0.0}
        )
    elif np.isfinite(every) and abs(every / scale - 1) > 1e-4:
        said = f"scores are multiplied by {every:.6g} instead of {scale:.6g} = 1/sqrt(head_dim)"
        words = said + _of_sizes(every, one)
        yield Mixture("attention.scale", words, softmax(one.scores * every, seen), 1, "", {"scale": every})
    for axis, noun in ((0, "head"), (1, "row")):
        own = slopes.over(1 - axis)
        told = np.where(np.isfinite(own) & (own != 0), own, scale)
        if len(told) > 1 and np.ptp(told) > 1e-4 * abs(scale):
            shaped = told.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
            words = (
                f"each {noun} has a scale of its own, {told.min():.4g} to {told.max():.4g}, not {scale:.4g}"
            )
            made = softmax(one.scores * shaped, seen)
            parameters = {"scales": told.tolist()}
            yield Mixture("attention.scale", words, made, len(told) + 1, "", parameters)
    yield from _with_distance(one, logs, used, seen)
    yield from _capped(one, probs, seen)
    yield from _other_axes(one)


class _Slopes:
    """Slopes of logarithms over scores `[heads, rows, keys]`, each row about its own mean."""

    def __init__(self, scores: Array, logs: Array, used: Mask) -> None:
        n = np.maximum(used.sum(axis=-1, keepdims=True), 1)
        a, b = (
            np.where(used, x - np.sum(np.where(used, x, 0.0), axis=-1, keepdims=True) / n, 0.0)
            for x in (scores, logs)
        )
        self._sizes, self._along = np.vecdot(a, a), np.vecdot(a, b)

    def over(self, axis: int | None) -> Array:
        """Of all, of each head (over axis 1) or of each row (over axis 0); NaN where scores are one."""
        size, along = self._sizes.sum(axis=axis), self._along.sum(axis=axis)
        return np.asarray(np.where(size > 0, along / np.where(size > 0, size, 1.0), np.nan))


def _of_sizes(scale: float, one: Attending) -> str:
    d, heads = one.q.shape[-1], one.heads
    sizes = {"head_dim": d, "width": d * heads, "n_heads": heads, "n_kv_heads": len(one.k)}
    sizes["the width of all key heads"] = d * len(one.k)
    for name, size in sizes.items():
        for power, form in ((-0.5, "1/sqrt({})"), (0.5, "sqrt({})"), (-1.0, "1/{}"), (1.0, "{}")):
            if size > 1 and abs(scale / size**power - 1) < 1e-3:
                return f"; it is {form.format(name)} = {form.format(size)}"
    if abs(scale - 1) < 1e-3:
        return "; they are not scaled"
    return ""


def _with_distance(one: Attending, logs: Array, used: Mask, seen: Mask) -> Iterator[Mixture]:
    """ALiBi: each head lowers scores by a slope times the distance."""
    rows = np.arange(one.n)
    distance = np.broadcast_to((rows[None, :] - rows[:, None]).astype(float), logs.shape)
    left = logs - one.scaled
    slopes = _Slopes(distance, left, used).over(1)
    if np.isfinite(slopes).all() and np.abs(slopes).max() > 1e-6:
        made = softmax(one.scaled + slopes[:, None, None] * distance, seen)
        words = (
            f"scores fall with the distance, by {some(_short(slopes), 8)} a token in the heads, as ALiBi's do"
        )
        yield Mixture("attention.bias", words, made, one.heads, "", {"slopes": slopes.tolist()})


def _capped(one: Attending, probs: Array, seen: Mask) -> Iterator[Mixture]:
    """cap tanh(score / cap): the cap whose probabilities are nearest."""
    rows = np.argsort(-np.abs(probs - one.probs).sum(axis=(0, 2)))[:16]
    scaled, wanted, there = one.scaled[:, rows], probs[:, rows], seen[rows]

    def off(log: float) -> float:
        cap = float(np.exp(log))
        return float(np.linalg.norm(softmax(cap * np.tanh(scaled / cap), there) - wanted))

    logs = np.linspace(np.log(0.25), np.log(200), 60)
    best = float(min(logs, key=off))
    width = float(logs[1] - logs[0])
    for _ in range(8):
        best = float(min(np.linspace(best - width, best + width, 21), key=off))
        width /= 8
    cap = float(np.exp(best))
    if abs(cap / float(f"{cap:.3g}") - 1) < 2e-3:
        cap = float(f"{cap:.3g}")
    words = f"scores are capped at {cap:.4g} by tanh, which Llama does not"
    yield Mixture(
        "attention.cap", words, softmax(cap * np.tanh(one.scaled / cap), seen), 1, "attn_logit_softcapping"
    )


def over_heads(one: Attending, probs: Array) -> bool:
    """Whether the softmax may have run over the heads: what the last rows tell."""
    rows = slice(-LOOKED_AT, None)
    made = _over(np.where(one.visible[rows], one.scaled[:, rows], -np.inf), 0)
    return distance(probs[:, rows], made) <= SLACK * one.tolerance


def _over(masked: Array, axis: int) -> Array:
    e = np.exp(masked - masked.max(axis=axis, keepdims=True))
    e = np.where(np.isnan(e), 0.0, e)
    total = e.sum(axis=axis, keepdims=True)
    return np.asarray(e / np.where(total > 0, total, 1.0))


def _other_axes(one: Attending) -> Iterator[Mixture]:
    """The softmax over queries, over heads; and not at all."""
    masked = np.where(one.visible, one.scaled, -np.inf)
    for axis, over in ((1, "the queries"), (0, "the heads")):
        made = _over(masked, axis)
        words = f"the softmax runs over {over}, not over the keys"
        yield Mixture("attention.axis", words, made, 0, "another axis of the tensor")
    yield Mixture(
        "attention.axis", "scores are not normalized: their exponentials are mixed", np.exp(masked), 0
    )


LOOKED_AT = 16
"""So many rows are looked at first, those that are furthest off."""

SLACK = 4.0
"""They may be so many times further off than all of them together."""

STEPS = ("queries and keys", "scores", "scaled scores", "probabilities")
"""What may be rounded on the way to the context."""


def rounded_steps(
    one: Attending, theirs: Array, after: Callable[[Array], Array] = np.asarray
) -> Iterator[Mixture]:
    """Any combination of steps in one format, but those that a few rows rule out.

    Args:
        theirs: `[heads, rows, …]`; after: what it should be, from probabilities.
    """
    few = np.argsort(-np.abs(theirs - after(one.probs)).sum(axis=(0, 2)))[:LOOKED_AT]
    # What these rows alone leave is at least as much as is allowed of all.
    most = one.tolerance * float(np.linalg.norm(theirs)) / max(1 - one.tolerance, FINEST)
    for name, rounded in FORMATS.items():
        for n in range(1, len(STEPS) + 1):
            for steps in itertools.combinations(STEPS, n):
                left = theirs[:, few] - after(_rounded(one, few, steps, rounded))
                if np.linalg.norm(left) > most:
                    continue
                made = _rounded(one, slice(None), steps, rounded)
                words = f"attention's {listed(steps)} are rounded to {name}"
                yield Mixture("attention.rounded", words, made, n, f"{name} where float32 is wanted")


def _rounded(one: Attending, rows: Any, steps: tuple[str, ...], rounded: Any) -> Array:
    """Some rows of the probabilities, `[heads, rows, keys]`, with these steps rounded."""

    def kept(x: Array, step: str) -> Array:
        return np.asarray(rounded(x)) if step in steps else x

    q, k = kept(one.q[:, rows], STEPS[0]), kept(one.k, STEPS[0])[one.reads]
    scores = kept(q @ k.transpose(0, 2, 1), STEPS[1])
    scaled = kept(scores * one.scale, STEPS[2])
    return kept(softmax(scaled, one.visible[rows]), STEPS[3])
