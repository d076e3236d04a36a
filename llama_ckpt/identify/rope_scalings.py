"""Llama 3's and YaRN's scaling of RoPE's frequencies: missing, twice, where there is none, of other numbers.

Each is made of the file's plain frequencies with the numbers that models state; what comes near the measured
ones is said, with the file's own number where that differs. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.rope_numbers import is_plain, llama3_scaled, same_number, theta_of
from llama_ckpt.identify.turns import Others
from llama_ckpt.listing import listed

__all__ = ["Frequencies", "Measured", "of_this_file", "scalings_of", "yarn_scaled"]

Array: TypeAlias = NDArray[Any]

CONTEXTS = (8192, 4096, 2048, 16384, 32768, 65536, 131072, 1024, 512)
"""Original contexts that models state, and those of small ones."""

FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0, 40.0, 64.0)
"""Factors that models state."""

LLAMA3_TURNS = ((1.0, 4.0), (1.0, 8.0), (2.0, 4.0), (1.0, 2.0), (4.0, 1.0), (0.5, 4.0), (2.0, 8.0))
"""Turns below which a pair is slow, and above which it is fast; Llama 3's own first."""

YARN_TURNS = ((1.0, 32.0), (1.0, 64.0), (2.0, 32.0), (1.0, 16.0), (4.0, 32.0), (1.0, 4.0), (32.0, 1.0))
"""The same of YaRN."""

NEAR = 1e-2
"""Radians by which an angle may be off for a scaling to be looked at."""

ROUNDED = 1e-5
"""Radians that rounding in float32 may leave of an angle of a long prompt."""

MOST = 6
"""So many are said at most."""

IGNORED = "rope_scaling of the configuration is ignored"


@dataclass(frozen=True)
class Measured:
    """The frequency of each pair `[pairs]`, and how sure that is: what an angle's error does to it."""

    at: Array
    sure: Array


class Frequencies(Others):
    """Other frequencies than the right ones; `at` is `[pairs]`."""


@dataclass(frozen=True)
class _Numbers:
    """A scaling's numbers, by what they are called."""

    factor: float
    context: float
    low: float
    high: float

    def said(self, whose: str, own: _Numbers | None, right: tuple[float, float]) -> str:
        """With the file's own where they differ, and with those turns that are not the usual ones."""
        scaled = "RoPE's frequencies are scaled"
        if own is not None:
            called = ("factor", "original context", "turns of a slow pair", "turns of a fast pair")
            pairs = zip(called, vars(self).values(), vars(own).values(), strict=True)
            other = [f"{name} {a:g} instead of {b:g}" for name, a, b in pairs if not same_number(a, b)]
            return f"{scaled} {whose}" + (f" with {listed(other)}" if other else "")
        usual = (self.low, self.high) == right
        more = "" if usual else f", slow below {self.low:g} turns, fast above {self.high:g}"
        return f"{scaled} by {self.factor:g} {whose}, from a context of {self.context:g}{more}"

    def numbers(self, own: _Numbers | None, right: tuple[float, float]) -> int:
        """How many were read from the tensor."""
        if own is None:
            return 2 if (self.low, self.high) == right else 4
        return sum(not same_number(getattr(self, n), getattr(own, n)) for n in vars(self))


def of_this_file(own: Array, pairs: int, config: Any) -> Iterator[Frequencies]:
    """What is made of the file's numbers by leaving one out, or applying one otherwise."""
    factors = np.asarray(getattr(config, "rope_factors", ()), np.float64)
    scale = float(getattr(config, "rope_scale", 1.0))

    def said(words: str, at: Array, code: str = IGNORED) -> Frequencies:
        return Frequencies("rope.scaling", words, at[:pairs], 0, code)

    if len(factors) == len(own):
        whose = "the file's divisors of RoPE's frequencies, Llama 3's scaling,"
        yield said(f"{whose} are missing", own * factors)
        words = f"frequencies are multiplied by {whose[:-1]}, instead of divided"
        yield said(words, own * factors**2, "factors the wrong way round")
        yield said(
            f"frequencies are divided twice by {whose[:-1]}", own / factors, "scaled at load and at run"
        )
        slowest = float(factors.max())
        said_linear = f"every pair is slowed by {slowest:g}, as only slow ones are in Llama 3's scaling"
        yield said(said_linear, own * factors / slowest, "taken as linear scaling")
    if getattr(config, "rope_yarn", None) is not None:
        yield from (said(*one) for one in _yarn_of_this_file(own, config, scale))
    elif scale != 1:
        yield said(f"the file's linear scaling of RoPE by {scale:g} is missing", own * scale)


def _yarn_of_this_file(own: Array, config: Any, scale: float) -> Iterator[tuple[str, Array]]:
    plain = _plain(own, config)
    if plain is None:
        return
    yield "the file's YaRN scaling of RoPE's frequencies is missing", plain
    yield f"every pair is slowed by {scale:g}: the file's YaRN scaling is taken as linear", plain / scale
    yield "the file's YaRN scaling of RoPE's frequencies is applied twice", own * own / plain
    said = "fast and slow pairs are exchanged: the file's YaRN scaling slows the fast ones"
    yield said, plain + plain / scale - own


def _plain(own: Array, config: Any) -> Array | None:
    """The frequencies of the file's theta alone; None where nobody knows them."""
    theta = getattr(config, "rope_theta", None)
    if theta is not None:
        return np.asarray(float(theta) ** (-np.arange(len(own)) / len(own)))
    return own if is_plain(own) else None


def scalings_of(found: Measured, own: Array, config: Any) -> Iterator[Frequencies]:
    """Llama 3's and YaRN's scaling with whatever numbers come near."""
    plain = _plain(own, config)
    if plain is None or len(found.at) != len(own):
        return
    near = [*_llama3(found, plain, config), *_yarn(found, plain, config)]
    misfits = [_misfit(one.at, found) for one in near]
    # Of those that come near only what fits about as well as the best: few positions tell few numbers.
    most = max(3 * min(misfits, default=0.0), ROUNDED)
    kept = [one for one, misfit in zip(near, misfits, strict=True) if misfit <= most]
    yield from sorted(kept, key=lambda one: one.free)[:MOST]


def _misfit(at: Array, found: Measured) -> float:
    """The largest angle, in radians, by which frequencies are off."""
    return float((np.abs(at - found.at) / found.sure).max())


def _near(at: Array, found: Measured) -> bool:
    return _misfit(at, found) <= NEAR


def _factors(found: Measured, plain: Array) -> Iterable[float]:
    """Those that models state, and what the surest of the slow pairs has."""
    with np.errstate(all="ignore"):
        ratio = plain / found.at
    sure = (found.sure * 1e-6 < 0.01 * plain) & np.isfinite(ratio)
    top = float(ratio[sure].max()) if sure.any() else 0.0
    more = [float(round(top, 3))] if top > 1.01 and all(abs(top / one - 1) > 1e-3 for one in FACTORS) else []
    return (*FACTORS, *more)


def _contexts(config: Any) -> Iterable[float]:
    stated = (getattr(config, "original_context", 0), getattr(config, "context_length", 0))
    return dict.fromkeys(float(one) for one in (*stated, *CONTEXTS) if one)


def _llama3(found: Measured, plain: Array, config: Any) -> Iterator[Frequencies]:
    own = _llama3_of(config, plain)
    right = LLAMA3_TURNS[0]
    for (low, high), factor, context in product(LLAMA3_TURNS, _factors(found, plain), _contexts(config)):
        numbers = _Numbers(factor, context, low, high)
        at = llama3_scaled(plain, factor, low=low, high=high, context=int(context))
        if _near(at, found):
            words = numbers.said("as Llama 3.1's are", own, right)
            yield _scaled(words, at, numbers, numbers.numbers(own, right))
        for turns in (low, high) if (low, high) == right else ():
            hard = np.where(context * plain / (2 * np.pi) < turns, plain / factor, plain)
            if _near(hard, found):
                words = f"RoPE's frequencies are scaled as Llama 3.1's are by {factor:g}, without the pairs"
                words += f" in between: those that turn less than {turns:g} times in {context:g} positions"
                yield _scaled(words, hard, numbers, 3)


def _llama3_of(config: Any, plain: Array) -> _Numbers | None:
    """The numbers of the file's own divisors, where they are those of Llama 3.1 or 3.2."""
    factors = np.asarray(getattr(config, "rope_factors", ()), np.float64)
    low, high = LLAMA3_TURNS[0]
    for factor in (8.0, 32.0):
        at = llama3_scaled(plain, factor, low=low, high=high)
        if len(factors) == len(plain) and np.allclose(plain / at, factors, rtol=1e-5, atol=0):
            return _Numbers(factor, 8192.0, low, high)
    return None


def _yarn(found: Measured, plain: Array, config: Any) -> Iterator[Frequencies]:
    yarn, own = getattr(config, "rope_yarn", None), None
    if yarn is not None:
        own = _Numbers(float(config.rope_scale), yarn.original_context, yarn.beta_slow, yarn.beta_fast)
    right = YARN_TURNS[0]
    for (slow, fast), factor, context in product(YARN_TURNS, _factors(found, plain), _contexts(config)):
        numbers = _Numbers(factor, context, slow, fast)
        for whole in (True, False):
            at = yarn_scaled(plain, factor, int(context), slow=slow, fast=fast, whole=whole)
            if _near(at, found):
                words = numbers.said("as YaRN does", own, right)
                words += "" if whole else ", but the ends of the ramp are not rounded to whole pairs"
                yield _scaled(words, at, numbers, numbers.numbers(own, right) + (not whole))
                break


def _scaled(words: str, at: Array, numbers: _Numbers, free: int) -> Frequencies:
    parameters = {"factor": numbers.factor, "original_context": numbers.context}
    parameters |= {"low": numbers.low, "high": numbers.high}
    return Frequencies("rope.scaling", words, at, max(free, 1), "rope_scaling", parameters=parameters)


def yarn_scaled(
    frequencies: Array,
    factor: float,
    context: int,
    *,
    slow: float = 1.0,
    fast: float = 32.0,
    whole: bool = True,
) -> Array:
    """YaRN's frequencies (Peng et al. 2023, arXiv 2309.00071): fast pairs kept, slow ones divided.

    Args:
        slow, fast: the ramp runs over the pairs between those that turn so often in the original context.
        whole: its ends are rounded to whole pairs, outwards.
    """
    pairs, theta = len(frequencies), theta_of(frequencies)
    if not theta > 1:
        return frequencies

    def pair_of(turns: float) -> float:
        return float(pairs * np.log(context / (turns * 2 * np.pi)) / np.log(theta))

    low, high = pair_of(fast), pair_of(slow)
    if whole:
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0.0), min(high, 2.0 * pairs - 1)
    ramp = np.clip((np.arange(pairs) - low) / max(high - low, 1e-3), 0, 1)
    return np.asarray(frequencies * (1 - ramp) + frequencies / factor * ramp)
