"""Checkpoint 11: the sampler's probabilities. Each bug is the right chain with one `Chain` option wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import Patch, PatchedOracle

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Chain:
    """What may be wrong in the chain: top-k, top-p, min-p, temperature.

    Attributes:
        scale: of logits and temperature, the scaled logits.
        scale_first: the temperature is applied before anything is cut off.
        extra_k: how many more tokens top-k keeps.
        reaching_stays: top-p keeps the token that reaches p.
        min_p_base: of the probabilities, what min-p is a share of.
        renormalized: what is kept sums to one.
        order: of the cuts.
    """

    scale: Callable[[Array, float], Array] = lambda x, temperature: x / temperature
    scale_first: bool = False
    extra_k: int = 0
    reaching_stays: bool = True
    min_p_base: Callable[[Array], Any] = lambda probs: probs[..., :1]
    renormalized: bool = True
    order: str = "kpm"


def chain(**wrong: Any) -> Patch:
    """The sampler's chain with these options."""
    made = Chain(**wrong)

    def softmax(
        right: PatchedOracle,
        logits: Any,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        tap: Any = None,
    ) -> Array:
        x = right.float64(logits)
        order = np.argsort(-x, axis=-1, kind="stable")
        ranked = np.take_along_axis(x, order, axis=-1)
        greedy, temperature = temperature < 1e-6, max(temperature, 1e-6)
        if made.scale_first:
            ranked, temperature = made.scale(ranked, temperature), 1.0
        kept = np.ones(ranked.shape, dtype=bool)
        options = {"k": (top_k + made.extra_k if top_k > 0 else 0), "p": top_p, "m": min_p}
        for cut in made.order:
            kept = kept & CUTS[cut](right, made, ranked, kept, options[cut])
        kept[..., 1:] &= not greedy
        scaled = ranked if made.scale_first else made.scale(ranked, temperature)
        probs = right.normalized_exp(np.where(kept, scaled, -np.inf))
        if not made.renormalized:
            probs = np.where(kept, right.normalized_exp(scaled), 0.0)
        result: Array = np.empty_like(x)
        np.put_along_axis(result, order, probs, axis=-1)
        return result

    return softmax


def cut_k(right: PatchedOracle, made: Chain, ranked: Array, kept: Array, top_k: float) -> Array:
    return np.broadcast_to((np.arange(ranked.shape[-1]) < top_k) | (top_k <= 0), ranked.shape)


def cut_p(right: PatchedOracle, made: Chain, ranked: Array, kept: Array, top_p: float) -> Array:
    if top_p >= 1:
        return np.ones_like(kept)
    probs = right.normalized_exp(np.where(kept, ranked, -np.inf))
    reached = np.cumsum(probs, axis=-1) >= top_p
    stays = np.ones_like(kept)
    stays[..., 1:] = ~reached[..., :-1] if made.reaching_stays else ~reached[..., 1:]
    return stays


def cut_m(right: PatchedOracle, made: Chain, ranked: Array, kept: Array, min_p: float) -> Array:
    if min_p <= 0:
        return np.ones_like(kept)
    probs = right.normalized_exp(np.where(kept, ranked, -np.inf))
    stays: Array = probs >= min_p * made.min_p_base(probs)
    stays[..., 0] = True
    return stays


CUTS = {"k": cut_k, "p": cut_p, "m": cut_m}


def greedy_ignored(
    right: PatchedOracle, logits: Any, *, temperature: float = 1.0, tap: Any = None, **cuts: Any
) -> Array:
    """Temperature 0 read as "not set", which means 1."""
    result: Array = right.softmax(logits, temperature=temperature or 1.0, **cuts)
    return result


def bug(name: str, sentence: str, **wrong: Any) -> Bug:
    return Bug(f"softmax-{name}", sentence, "11", "softmax", chain(**wrong))


BUGS = (
    bug("temperature-multiplied", "logits are multiplied by the temperature", scale=lambda x, t: x * t),
    bug("temperature-ignored", "the temperature is ignored", scale=lambda x, t: x),
    bug("temperature-first", "the temperature is applied before the truncation", scale_first=True),
    Bug("softmax-zero-temperature", "temperature 0 is taken for 1", "11", "softmax", greedy_ignored),
    bug("top-k-one-more", "top-k keeps one token more", extra_k=1),
    bug("top-k-one-fewer", "top-k keeps one token fewer", extra_k=-1),
    bug("top-p-one-early", "top-p drops the token that reaches p", reaching_stays=False),
    bug("top-p-first", "top-p comes before top-k: it counts shares of all tokens", order="pkm"),
    bug(
        "min-p-of-one",
        "min-p is a share of 1, not of the best token's probability",
        min_p_base=lambda probs: 1.0,
    ),
    bug("not-renormalized", "the kept probabilities are not made to sum to one", renormalized=False),
)
