"""Which keys each row saw, with which scale, from which head, and over what the sum was made. numpy only.

What is recorded decides what can be read: of scores the heads and keys that they are of; of probabilities the
keys seen, the mass that is missing, the scale; of a context alone only what a rule predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.attending import Attending, Mask, attending, softmax
from llama_ckpt.identify.attention_context import context_guesses, lost_guesses
from llama_ckpt.identify.attention_heads import heads_said, matched_heads, place_of_heads
from llama_ckpt.identify.attention_scores import scores_guesses
from llama_ckpt.identify.attention_sums import (
    Mixture,
    in_the_sum,
    of_the_scores,
    over_heads,
    rounded_steps,
)
from llama_ckpt.identify.key_sets import rules_of
from llama_ckpt.identify.places import Place, ranges
from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.judging.matching import distance

__all__ = ["attention_guesses"]

Array: TypeAlias = NDArray[Any]

NOTHING = 1e-30
"""A probability below this may be zero in float32 as well."""

HALF_NOTHING = 1e-6
"""The same in half precision, where float16 ends soon."""

VAST = 1 << 20
"""So many probabilities are asked of all heads only where a few do not answer."""

SLACK = 4.0
"""A few heads may be so many times further off than all of them together."""

MOST_RULES = 3
"""So many rules that say the same keys are named."""


def attention_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where scores, probabilities or context are the first wrong tensor."""
    one = attending(asked)
    if one is None:
        return
    if asked.point == "attn_scores":
        yield from scores_guesses(one)
    elif asked.point == "attn_probs":
        yield from _of_probs(one)
    else:
        yield from context_guesses(one)


def _of_probs(one: Attending) -> Iterator[Guess]:
    probs = one.theirs("attn_probs")
    if probs is None:
        return
    lost = np.flatnonzero(np.isnan(probs).any(axis=(0, 2)))
    if len(lost):
        yield from _lost_rows(one, probs, lost)
        return
    if not np.isfinite(probs).all() or (probs < 0).any():
        return
    seen = (probs > 0).any(axis=0)
    yield from _of_keys(one, probs, seen)
    yield from _of_mass(one, probs)
    yield from _of_other_heads(one, probs)
    if over_heads(one, probs) or _worth(one, probs, of_the_scores):
        for mixture in of_the_scores(one, probs):
            yield from _mixed(one, probs, mixture)
    for mixture in rounded_steps(one, probs):
        yield from _mixed(one, probs, mixture)
    yield from _of_each_head(one, probs)


def _lost_rows(one: Attending, probs: Array, lost: NDArray[np.int64]) -> Iterator[Guess]:
    """Rows that are NaN saw nothing; a rule may say it of them and of the others."""
    seen: Mask = np.asarray((np.nan_to_num(probs) > 0).any(axis=0))
    seen[lost] = False
    yield from lost_guesses(one, seen, lost, lambda probs: one.following(probs=probs))


def _unknown(one: Attending, seen: Any) -> Any:
    """Keys whose probability would be nothing: whether they are seen cannot be told."""
    with np.errstate(all="ignore"):
        shown = np.where(seen, one.scaled, -np.inf).max(axis=-1, keepdims=True)
        would = np.exp(np.clip(one.scaled - shown, -745, 0)).max(axis=0)
    half = one.asked.first.limit.dtype not in ("float32", "integer")
    return (would < (HALF_NOTHING if half else NOTHING)) & seen.any(axis=1, keepdims=True)


def _of_keys(one: Attending, probs: Array, seen: Any) -> Iterator[Guess]:
    """The keys that all heads see; a rule that says them."""
    if (seen == one.visible).all():
        return
    unknown = _unknown(one, seen)
    if not ((seen != one.visible) & ~unknown).any() or not seen.any(axis=1).all():
        return
    if not _alike(one, probs, softmax(one.scaled, seen)):
        return
    for n, rule in enumerate(rules_of(seen, unknown, one.visible)):
        if n == MOST_RULES:
            break
        if rule.seen.any(axis=1).all():
            predicted = one.following(probs=softmax(one.scaled, rule.seen))
            wrong = np.flatnonzero((rule.seen != one.visible).any(axis=1))
            place = Place(
                rows=ranges(wrong) if len(wrong) < one.n else None,
                keys=ranges(np.flatnonzero((rule.seen != one.visible).any(axis=0))),
                sizes={"rows": one.n, "keys": one.n},
                nouns={"rows": "token"},
            )
            parameters = {"keys_seen": _rows_of(rule.seen)} | dict(rule.parameters)
            yield Guess(rule.kind, rule.words, predicted, rule.free, place, parameters, rule.code)


def _rows_of(seen: Any) -> list[list[list[int]]]:
    """The runs of keys that each row sees, for a map."""
    return [[list(run) for run in ranges(np.flatnonzero(row))] for row in seen]


def _of_each_head(one: Attending, probs: Array) -> Iterator[Guess]:
    """Heads that see other keys than the others."""
    seen = probs > 0
    own = (seen != one.visible).any(axis=(1, 2))
    for h in np.flatnonzero(own):
        own[h] = ((seen[h] != one.visible) & ~_unknown(one, seen[h])).any()
    if not own.any() or own.all() or not seen.any(axis=-1).all():
        return
    heads = np.flatnonzero(own)
    first = seen[heads[0]]
    if not all((seen[h] == first).all() for h in heads):
        return
    made = one.probs.copy()
    for rule in rules_of(first, _unknown(one, first), one.visible):
        made[heads] = softmax(one.scaled[heads], rule.seen)
        place = Place(heads=ranges(heads), sizes={"heads": one.heads})
        words = f"in {place.said()} only: {rule.words}"
        parameters = {"keys_seen": _rows_of(rule.seen)}
        yield Guess(rule.kind, words, one.following(probs=made), rule.free + 1, place, parameters, rule.code)
        return


def _of_other_heads(one: Attending, probs: Array) -> Iterator[Guess]:
    """Probabilities of other key heads, where the scores were not recorded."""
    if len(one.k) < 2:
        return
    rows = slice(max(0, one.n - 16), one.n)
    scores = one.q[:, None, rows] @ one.k[None].transpose(0, 1, 3, 2)
    reads = matched_heads(probs[:, rows], softmax(scores * one.scale, one.visible[rows]), True)
    if (reads == one.reads).all():
        return
    made = softmax(one.scores_of(reads) * one.scale, one.visible)
    if not _alike(one, probs, made):
        return
    rest = (int(np.sum(reads != one.reads)), place_of_heads(reads, one), {"reads": reads.tolist()})
    code = "tile or repeat for repeat_interleave, or key heads in another order"
    words = heads_said(reads, one, "key and value")
    yield Guess("attention.heads", words, one.following(probs=made, values=reads), *rest, code)
    words = heads_said(reads, one, "key") + ", and the right values"
    yield Guess("attention.heads", words, one.following(probs=made), *rest, code)


def _of_mass(one: Attending, probs: Array) -> Iterator[Guess]:
    """Rows whose keys share less than all, or more."""
    inside = np.where(one.visible, probs, 0.0)
    mass = inside.sum(axis=-1)
    if not (mass > 0).all() or np.abs(mass - 1).max() < one.tolerance:
        return
    inside /= mass[..., None]
    if not _alike(one, inside, one.probs):
        return
    del inside
    if _worth(one, probs, lambda one, probs: in_the_sum(one, _mass(one, probs), one.visible)):
        for mixture in in_the_sum(one, mass, one.visible):
            yield from _mixed(one, probs, mixture)


def _mass(one: Attending, probs: Array) -> Array:
    return np.asarray(np.sum(probs, axis=-1, where=one.visible))


def _worth(one: Attending, probs: Array, mixtures: Callable[[Attending, Array], Iterator[Mixture]]) -> bool:
    """Whether one of these may give the probabilities: of a long prompt a few heads tell."""
    if probs.size <= VAST:
        return True
    few = _few_heads(one, probs)
    small, theirs = one.of_heads(few), probs[few]
    return any(_alike(small, theirs, mixture.probs, SLACK) for mixture in mixtures(small, theirs))


def _few_heads(one: Attending, probs: Array) -> NDArray[np.int64]:
    """The query heads of the key head that is furthest off; of two where each has but one."""
    group = one.heads // len(one.k)
    off = [float(np.linalg.norm(theirs - right)) for theirs, right in zip(probs, one.probs, strict=True)]
    worst = np.argsort(-np.reshape(off, (-1, group)).max(axis=1), kind="stable")[: 1 if group > 1 else 2]
    return np.concatenate([np.arange(group * key, group * (key + 1)) for key in np.sort(worst)])


def _mixed(one: Attending, probs: Array, mixture: Mixture) -> Iterator[Guess]:
    if not _alike(one, probs, mixture.probs):
        return
    context = one.asked.theirs("attn_context") if mixture.unknown else None
    predicted = one.following(probs=mixture.probs, context=context)
    if mixture.unknown and context is None:
        out = one.asked.of("attn_out")  # made of values that nobody recorded
        predicted |= {} if out is None else {out.name: np.asarray(out.x, np.float64)}
    yield Guess(
        mixture.kind,
        mixture.words,
        predicted,
        mixture.free,
        parameters=mixture.parameters,
        code=mixture.code,
        would_tell=mixture.tells,
    )


def _alike(one: Attending, theirs: Array, made: Array, slack: float = 1.0) -> bool:
    return distance(theirs, made) <= slack * one.tolerance
