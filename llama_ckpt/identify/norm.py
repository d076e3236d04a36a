"""The gain of each feature and the factor of each row that a norm applied. numpy only.

Of every weight that may have been used the factor of each row follows by least squares; what leaves no more
than rounding may is said. Only the rows and features that are off are asked, and the rest stays as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.norm_factors import Factor, factors
from llama_ckpt.identify.norm_in_half import norms_in_half
from llama_ckpt.identify.places import Place, elements_off, ranges
from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.identify.rounded import FORMATS
from llama_ckpt.judging.matching import distance, leaves_at_most
from llama_ckpt.listing import listed
from llama_ckpt.points import ALL_POINTS, block_point

__all__ = ["norm_guesses"]

Array: TypeAlias = NDArray[Any]

NEAR = 8.0
"""A guess is worth trying that leaves so many times what rounding may."""

MOST_TRIED = 4
"""So many explanations are held against all that follows from the norm."""

MOST_LAYERS = 256
"""Norms of so many blocks are looked at."""


@dataclass(frozen=True)
class _Norm:
    """A wrong norm: what it was given, what came out, and where that is wrong."""

    asked: Asked
    x: Array
    weight: Array
    eps: float
    rows: NDArray[np.int64]
    features: NDArray[np.int64]

    @property
    def part(self) -> tuple[Array, Array]:
        """An index of what is wrong."""
        rows, features = np.ix_(self.rows, self.features)
        return rows, features

    @property
    def y(self) -> Array:
        """What came out, where it is wrong."""
        return np.asarray(self.asked.x[self.part])

    def with_part(self, made: Array) -> Array:
        """The whole tensor, right but for its wrong part."""
        whole = np.array(self.asked.o, np.float64)
        whole[self.part] = made
        return whole

    @property
    def place(self) -> Place:
        """Rows and features, where not all of them are meant."""
        n, width = self.x.shape
        return Place(
            rows=ranges(self.rows) if len(self.rows) < n else None,
            features=ranges(self.features) if len(self.features) < width else None,
            sizes={"rows": n, "features": width},
            nouns={"rows": "token"},
        )


def norm_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where a norm's output is the first wrong tensor."""
    norm = _given(asked)
    if norm is None:
        return
    limit = asked.first.limit
    most = NEAR * max(leaves_at_most(limit), limit.row_err)
    fitting = [(left, one) for one in _explanations(norm) if (left := distance(norm.y, one[2])) <= most]
    # Each is held against the logits, too, which cost more than all else: the simplest that fit are enough.
    fitting.sort(key=lambda pair: (pair[1][3], pair[0]))
    where = norm.place.said()
    found = [*_in_half(norm), *(one for _, one in fitting[:MOST_TRIED])]
    for kind, words, made, free, code, parameters in found:
        whole = norm.with_part(made)
        predicted = {asked.name: whole} | _logits(asked, whole)
        said = f"{words}, in {where} only" if where else words
        yield Guess(kind, said, predicted, free, norm.place, parameters, code)


def _given(asked: Asked) -> _Norm | None:
    given = asked.given
    if asked.first.case.function == "rms_norm":
        x, weight, eps = given["x"], given["weight"], given["eps"]
    elif asked.point == "output_norm":
        x, weight, eps = given["x"], given["weights"].output_norm, given["config"].rms_norm_eps
    else:
        return None
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    if asked.x.shape != x.shape or x.ndim != 2 or not np.isfinite(asked.x).all():
        return None
    off = elements_off(asked.x, asked.o, asked.first.limit, asked.first.mask)
    if not off.any():
        off |= True  # small everywhere
    rows, features = (np.flatnonzero(off.any(axis=axis)) for axis in (1, 0))
    # Where most are off, those that are not are so by chance.
    if len(features) > 0.5 * x.shape[1]:
        features = np.arange(x.shape[1])
    return _Norm(asked, x, weight, float(eps), rows, features)


def _logits(asked: Asked, normed: Array) -> dict[str, Array]:
    """What the head makes of another norm, where that was asked for."""
    one = asked.of("logits")
    if asked.point != "output_norm" or one is None:
        return {}
    return {one.name: np.matmul(normed, np.asarray(asked.given["weights"].output).T)}


_Explained: TypeAlias = tuple[str, str, Array, int, str, Mapping[str, Any]]


def _explanations(norm: _Norm) -> Iterator[_Explained]:
    x = norm.x[norm.part]
    if not norm.y.any():
        code = "the edge of a kernel's tiles, or a buffer that nobody writes"
        yield "norm.zero", "the norm's result stays zero", np.zeros_like(norm.y), 0, code, {}
        return
    for kind, words, weight, free, code in _weights(norm):
        whole = x * weight[norm.features]
        size = np.sum(whole * whole, axis=1)
        measured = np.sum(norm.y * whole, axis=1) / np.where(size > 0, size, 1.0)
        if not _fits(norm, whole * measured[:, None]):
            continue
        for factor in factors(measured, norm.x, norm.eps, norm.rows):
            said = ", and ".join(part for part in (words, factor.words) if part)
            if said and np.isfinite(factor.at).all():
                made = whole * factor.at[:, None]
                named = factor if factor.words and not words else Factor(kind, "", factor.at, 0, code)
                yield named.kind, said, made, free + factor.free, named.code, factor.parameters
    yield from _of_the_mean(norm)
    yield from _of_other_inputs(norm)
    yield from _rounded(norm)


def _fits(norm: _Norm, made: Array) -> bool:
    return distance(norm.y, made) <= NEAR * leaves_at_most(norm.asked.first.limit)


def _weights(norm: _Norm) -> Iterator[tuple[str, str, Array, int, str]]:
    """Every weight that may have been used: kind, words, `[width]`, free numbers, code."""
    own = norm.weight
    yield "norm.factor", "", own, 0, ""
    yield (
        "norm.weight",
        "the norm's weight is forgotten",
        np.ones_like(own),
        0,
        "the weight is not multiplied in",
    )
    yield "norm.weight", "the norm multiplies by 1 + weight", 1 + own, 0, "Gemma's norm"
    yield (
        "norm.weight",
        "the norm multiplies by its weight twice",
        own * own,
        0,
        "a weight folded in, and kept",
    )
    yield "norm.weight", "the norm divides by its weight", 1 / np.where(own != 0, own, np.inf), 0, ""
    yield from _other_norms(norm)
    yield from _moved(norm)
    for name, rounded in FORMATS.items():
        yield "norm.rounded", f"the norm's weight is rounded to {name}", rounded(own), 1, f"held in {name}"


def _other_norms(norm: _Norm) -> Iterator[tuple[str, str, Array, int, str]]:
    """The weights of the model's other norms."""
    weights = norm.asked.around.weights
    if weights is None:
        return
    code = "names of tensors mixed up, or layers of another stage"
    for number, block in zip(range(MOST_LAYERS), weights.blocks, strict=False):
        for name in ("attn_norm", "ffn_norm"):
            other = np.asarray(getattr(block, name), np.float64)
            if other.shape == norm.weight.shape and not np.array_equal(other, norm.weight):
                said = f"the norm has the weight of {block_point(number, name)}"
                yield "norm.weight", said, other, 1, code
    other = np.asarray(weights.output_norm, np.float64)
    if other.shape == norm.weight.shape and not np.array_equal(other, norm.weight):
        yield "norm.weight", "the norm has the weight of output_norm", other, 1, code


def _moved(norm: _Norm) -> Iterator[tuple[str, str, Array, int, str]]:
    """Its own weight in another order: rolled, reversed, or as the gains say."""
    own, width = norm.weight, len(norm.weight)
    yield "norm.weight", "the norm's weight is reversed", own[::-1], 0, ""
    gain = _gains(norm)
    if gain is None or np.ptp(own) == 0:
        return
    fft = np.fft.ifft(np.fft.fft(gain - gain.mean()) * np.conj(np.fft.fft(own - own.mean()))).real
    shift = int(np.argmax(fft))
    if shift:
        by = shift if shift <= width // 2 else shift - width
        said = f"the norm's weight is shifted by {by} feature{'s' * (abs(by) > 1)}"
        yield "norm.weight", said, np.roll(own, shift), 1, "an offset into a buffer"


def _gains(norm: _Norm) -> Array | None:
    """Each feature's gain on the right factors; None where not all features are off."""
    if len(norm.features) < len(norm.weight):
        return None
    normed = norm.x[norm.rows] / np.sqrt(np.mean(norm.x[norm.rows] ** 2, axis=1, keepdims=True) + norm.eps)
    size = np.sum(normed * normed, axis=0)
    return np.asarray(np.sum(norm.y * normed, axis=0) / np.where(size > 0, size, 1.0))


def _of_the_mean(norm: _Norm) -> Iterator[_Explained]:
    """LayerNorm, and the mean subtracted without its part in the size."""
    centred = norm.x - norm.x.mean(axis=1, keepdims=True)
    sizes = {
        "the norm subtracts the mean and divides by the deviation, as LayerNorm does": centred,
        "the norm subtracts the mean, and divides by the root mean square of what it was given": norm.x,
        "the norm divides by the deviation about the mean, which it does not subtract": centred,
    }
    for words, of in sizes.items():
        rows = norm.x if words.endswith("subtract") else centred
        made = rows / np.sqrt(np.mean(of * of, axis=1, keepdims=True) + norm.eps) * norm.weight
        yield "norm.mean", words, made[norm.part], 0, "LayerNorm for RMSNorm", {}


def _of_other_inputs(norm: _Norm) -> Iterator[_Explained]:
    """Another tensor of the block was normalized."""
    asked = norm.asked
    reads = ALL_POINTS[asked.point].reads if asked.point in ALL_POINTS else ()
    for point in asked.around.theirs:
        other = asked.theirs(point)
        if point in (asked.point, *reads) or other is None or other.shape != norm.x.shape:
            continue
        if not np.isfinite(other).all():
            continue
        made = other / np.sqrt(np.mean(other * other, axis=1, keepdims=True) + norm.eps) * norm.weight
        words = f"the norm is given {point} instead of {reads[0] if reads else 'its input'}"
        yield "norm.input", words, made[norm.part], 1, "a residual left out, or the wrong variable", {}


def _in_half(norm: _Norm) -> Iterator[_Explained]:
    """What gives the very numbers of a program in half precision; nothing that was fitted is in it."""
    found = norms_in_half(norm.x[norm.rows], norm.y, norm.weight, norm.eps, norm.features)
    for kind, words, made, parameters in found:
        code = (
            "x.pow(2).mean() of a half-precision x"
            if kind == "norm.rounded"
            else "rms_norm_eps of another model"
        )
        yield kind, words, made, 0, code, parameters


STEPS = ("input", "mean square", "factor", "result before the weight", "weight")
"""What may be rounded in a norm."""


def _rounded(norm: _Norm) -> Iterator[_Explained]:
    """Computed in half precision, in any combination of steps."""
    for name, rounded in FORMATS.items():
        for n in range(1, len(STEPS) + 1):
            for steps in itertools.combinations(STEPS, n):

                def kept(value: Array, step: str, steps: tuple[str, ...] = steps, r: Any = rounded) -> Array:
                    return np.asarray(r(value)) if step in steps else value

                x = kept(norm.x[norm.rows], STEPS[0])
                mean = kept(np.mean(x * x, axis=1, keepdims=True), STEPS[1])
                normed = kept(x * kept(1 / np.sqrt(mean + norm.eps), STEPS[2]), STEPS[3])
                made = (normed * kept(norm.weight, STEPS[4]))[:, norm.features]
                words = f"the norm's {listed(steps)} {'are' if n > 1 else 'is'} rounded to {name}"
                yield "norm.rounded", words, made, n, f"a norm in {name}, where float32 is wanted", {}
