"""What a context alone tells: which values were mixed, how heads lie, which keys a row saw. numpy only.

Where probabilities were recorded and are right, the values are wrong or lie otherwise; where none were, the
keys that a row saw are those of the interval whose mixture its context is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.affine import factors_said
from llama_ckpt.identify.attending import Attending, Mask, softmax
from llama_ckpt.identify.attention_heads import heads_said, matched_heads, place_of_heads
from llama_ckpt.identify.attention_sums import in_the_sum, of_the_scores, rounded_steps
from llama_ckpt.identify.attention_tiles import tile_guesses
from llama_ckpt.identify.key_sets import rules_of, verb
from llama_ckpt.identify.places import Place, ranges
from llama_ckpt.identify.record import Guess
from llama_ckpt.identify.rounded import FORMATS
from llama_ckpt.listing import which

__all__ = ["context_guesses", "lost_guesses"]

Array: TypeAlias = NDArray[Any]

MOST_KEYS = 160
"""Up to so many keys every interval is tried; of more those that begin at 0 or end at the row itself."""


def context_guesses(one: Attending) -> Iterator[Guess]:
    """Guesses where the context is the first wrong tensor."""
    context = one.asked.x
    if context.shape != (one.n, one.heads * one.v.shape[-1]):
        return
    lost = np.flatnonzero(np.isnan(context).any(axis=1))
    if len(lost):
        heads = np.nan_to_num(context).reshape(one.n, one.heads, -1).transpose(1, 0, 2)
        seen = None if one.asked.theirs("attn_probs") is not None else _seen(one, heads, lost)
        seen = one.visible.copy() if seen is None else seen
        seen[lost] = False
        yield from lost_guesses(one, seen, lost, lambda probs: one.following(context=one.context_of(probs)))
        return
    if not np.isfinite(context).all():
        return
    theirs = context.reshape(one.n, one.heads, -1).transpose(1, 0, 2)  # [heads, n, d]
    yield from _other_values(one, theirs)
    yield from _head_factors(one, theirs)
    yield from _heads_in_another_order(one, context)
    if one.asked.theirs("attn_probs") is None:
        yield from _intervals(one, theirs)
        yield from _masses(one, theirs)
        yield from _other_reads(one, theirs)
        yield from _scales(one, theirs)
        yield from tile_guesses(one, theirs)
        for mixture in rounded_steps(one, theirs, lambda probs: probs @ one.v[one.reads]):
            made = one.context_of(mixture.probs)
            if _near(one, context, made):
                yield Guess(mixture.kind, mixture.words, one.following(context=made), mixture.free)


def lost_guesses(
    one: Attending, seen: Mask, lost: NDArray[np.int64], follow: Callable[[Array], dict[str, Array]]
) -> Iterator[Guess]:
    """Rows that are NaN saw nothing: the softmax of nothing is not a number.

    Args:
        seen: what the other rows saw, as far as that is known; lost: the rows.
        follow: what the tensors are with these probabilities.
    """
    rows = f"{which('token', lost, one.n)} {verb(lost, 'sees', 'see')}"
    words = f"NaN: {rows} no key at all, and the softmax of nothing is not a number"
    place = Place(rows=ranges(lost), sizes={"rows": one.n}, nouns={"rows": "token"})
    code = "a mask that hides every key of a row, as that of padding does"
    unknown = np.zeros_like(seen)
    unknown[lost] = True
    if (seen | unknown != one.visible | unknown).any():
        for rule in rules_of(seen, unknown, one.visible):
            made = rule.seen & ~unknown
            said = f"{words}; {rule.words}"
            yield Guess(
                "attention.nothing-seen", said, follow(softmax(one.scaled, made)), rule.free, place, code=code
            )
        return
    alone = follow(softmax(one.scaled, seen))
    yield Guess("attention.nothing-seen", words, alone, len(ranges(lost)), place, code=code)


def _near(one: Attending, theirs: Array, made: Array) -> bool:
    size = float(np.linalg.norm(made))
    return float(np.linalg.norm(theirs - made)) <= one.tolerance * (size or 1.0)


def _other_values(one: Attending, theirs: Array) -> Iterator[Guess]:
    """Values of other heads, rounded, of another tensor."""
    choices = one.probs[:, None] @ one.v[None]
    reads = matched_heads(theirs, choices, True)
    if (reads != one.reads).any():
        made = one.context_of(one.probs, reads)
        if _near(one, one.asked.x, made):
            words = heads_said(reads, one, "value")
            free = int(np.sum(reads != one.reads))
            place, code = place_of_heads(reads, one), "value heads repeated otherwise than key heads"
            yield Guess("attention.heads", words, one.following(context=made), free, place, code=code)
    for name, rounded in FORMATS.items():
        mixed = one.probs @ np.asarray(rounded(one.v))[one.reads]
        made = mixed.transpose(1, 0, 2).reshape(one.n, -1)
        if _near(one, one.asked.x, made):
            words = f"values are rounded to {name}"
            yield Guess("attention.rounded", words, one.following(context=made), 1, code=f"a cache in {name}")
    if one.k.shape == one.v.shape:
        mixed = (one.probs @ one.k[one.reads]).transpose(1, 0, 2).reshape(one.n, -1)
        if _near(one, one.asked.x, mixed):
            yield Guess(
                "attention.input", "keys are mixed instead of values", one.following(context=mixed), 1
            )
    yield from _before_rope(one)


def _head_factors(one: Attending, theirs: Array) -> Iterator[Guess]:
    """Some heads times a number, the others right."""
    right = one.probs @ one.v[one.reads]
    square = np.sum(right * right, axis=(1, 2))
    gains = np.sum(right * theirs, axis=(1, 2)) / np.where(square > 0, square, 1.0)
    moved = np.abs(gains - 1) > one.tolerance
    if not 0 < moved.sum() < one.heads:
        return
    gains = np.where(moved, gains, 1.0)
    made = (right * gains[:, None, None]).transpose(1, 0, 2).reshape(one.n, -1)
    if _near(one, one.asked.x, made):
        change, place = factors_said(gains, "head"), Place(heads=ranges(np.flatnonzero(moved)))
        place = replace(place, sizes={"heads": one.heads})
        free, given = change.numbers, change.parameters
        yield Guess("attention.factors", change.sentence, one.following(context=made), free, place, given)


def _before_rope(one: Attending) -> Iterator[Guess]:
    """Their own keys before RoPE, mixed in the place of values."""
    keys = one.asked.around.theirs.get("k")
    if keys is not None and np.shape(keys) == one.v.transpose(1, 0, 2).shape:
        mixed = one.probs @ np.asarray(keys, np.float64).transpose(1, 0, 2)[one.reads]
        made = mixed.transpose(1, 0, 2).reshape(one.n, -1)
        if _near(one, one.asked.x, made):
            yield Guess("attention.input", "keys are mixed instead of values", one.following(context=made), 1)


def _heads_in_another_order(one: Attending, context: Array) -> Iterator[Guess]:
    """Heads exchanged, or heads and features of a row interleaved."""
    right = one.context_of(one.probs)
    n, d = one.n, one.v.shape[-1]
    turned = right.reshape(n, one.heads, d).transpose(0, 2, 1).reshape(n, -1)
    if _near(one, context, turned):
        words = "heads lie interleaved in a row: feature by feature, not head by head"
        yield Guess("attention.layout", words, one.following(context=turned), 0, code="a transpose left out")
    by_head = right.reshape(n, one.heads, d).transpose(1, 0, 2)
    theirs = context.reshape(n, one.heads, d).transpose(1, 0, 2)
    chosen = matched_heads(theirs, np.broadcast_to(by_head[None], (one.heads, *by_head.shape)), True)
    if (chosen != np.arange(one.heads)).any():
        made = by_head[chosen].transpose(1, 0, 2).reshape(n, -1)
        if _near(one, context, made):
            wrong = np.flatnonzero(chosen != np.arange(one.heads))
            stand = ", ".join(str(int(head)) for head in chosen[wrong][:12])
            place = Place(heads=ranges(wrong), sizes={"heads": one.heads})
            words = f"heads lie in another order: in the place of {place.said()} stand {stand}"
            yield Guess("attention.layout", words, one.following(context=made), len(wrong), place)


def _seen(one: Attending, theirs: Array, lost: NDArray[np.int64]) -> Mask | None:
    """`[rows, keys]`: the interval of keys whose mixture each row is; None where some row is none."""
    n = one.n
    seen = one.visible.copy()
    right = one.probs @ one.v[one.reads]
    size = np.linalg.norm(theirs, axis=(0, 2))
    off = np.linalg.norm(theirs - right, axis=(0, 2))
    most = one.tolerance * np.where(size > 0, size, 1.0)
    for row in np.setdiff1d(np.flatnonzero(off > most), lost):
        found = _interval(one, theirs[:, row], int(row), float(most[row]))
        if found is None:
            return None
        seen[row] = (np.arange(n) >= found[0]) & (np.arange(n) <= found[1])
    return seen


def _intervals(one: Attending, theirs: Array) -> Iterator[Guess]:
    """The keys from one to another whose mixture each row's context is, in all heads."""
    n = one.n
    seen = _seen(one, theirs, np.zeros(0, np.int64))
    if seen is None:
        return
    if (seen == one.visible).all():
        return
    for rule in rules_of(seen, np.zeros_like(seen), one.visible):
        made = one.context_of(softmax(one.scaled, rule.seen))
        rows = [[list(run) for run in ranges(np.flatnonzero(row))] for row in rule.seen]
        parameters = {"keys_seen": rows} | dict(rule.parameters)
        wrong = np.flatnonzero((rule.seen != one.visible).any(axis=1))
        place = Place(
            rows=ranges(wrong) if len(wrong) < n else None, sizes={"rows": n}, nouns={"rows": "token"}
        )
        yield Guess(
            rule.kind, rule.words, one.following(context=made), rule.free, place, parameters, rule.code
        )


def _interval(one: Attending, wanted: Array, row: int, most: float) -> tuple[int, int] | None:
    """First and last key of the mixture that `wanted [heads, d]` is; None where there is none."""
    n = one.n
    scaled = one.scaled[:, row]
    e = np.exp(scaled - scaled.max(axis=-1, keepdims=True))  # [heads, n]
    sums = np.concatenate([np.zeros((one.heads, 1)), np.cumsum(e, axis=1)], axis=1)
    values = one.v[one.reads] * e[..., None]
    mixed = np.concatenate([np.zeros((one.heads, 1, values.shape[-1])), np.cumsum(values, axis=1)], axis=1)
    if n <= MOST_KEYS:
        first, last = np.triu_indices(n)
    else:
        every = np.arange(n)
        first = np.r_[np.zeros(n, np.int64), every[: row + 1], every[row + 1 :]]
        last = np.r_[every, np.full(row + 1, row), np.full(n - row - 1, n - 1)]
    with np.errstate(all="ignore"):
        made = (mixed[:, last + 1] - mixed[:, first]) / (sums[:, last + 1] - sums[:, first])[..., None]
        off = np.sqrt(np.sum((made - wanted[:, None]) ** 2, axis=(0, 2)))
    best = int(np.argmin(np.nan_to_num(off, nan=np.inf)))
    # Of intervals that fit alike the one that ends where it should.
    fits = np.flatnonzero(off <= max(most, off[best]))
    nearest = fits[np.argmin(np.abs(last[fits] - row) + first[fits])] if len(fits) else best
    return (int(first[nearest]), int(last[nearest])) if off[nearest] <= most else None


def _masses(one: Attending, theirs: Array) -> Iterator[Guess]:
    """Each row of each head is the right one times a number: more terms in the sum."""
    right = one.probs @ one.v[one.reads]
    square = np.sum(right * right, axis=2)
    mass = np.sum(right * theirs, axis=2) / np.where(square > 0, square, 1.0)
    made = (right * mass[..., None]).transpose(1, 0, 2).reshape(one.n, -1)
    if (mass <= 0).any() or not _near(one, one.asked.x, made) or np.ptp(mass) < 1e-9:
        return
    for mixture in in_the_sum(one, mass, one.visible):
        made = one.context_of(mixture.probs)
        if not mixture.unknown and _near(one, one.asked.x, made):
            predicted = one.following(context=made)
            yield Guess(mixture.kind, mixture.words, predicted, mixture.free, code=mixture.code)


def _other_reads(one: Attending, theirs: Array) -> Iterator[Guess]:
    """Every key head with every value head."""
    kv_heads = len(one.k)
    if kv_heads < 2:
        return
    scores = one.q[:, None] @ one.k[None].transpose(0, 1, 3, 2)
    probs = softmax(scores * one.scale, one.visible)  # [heads, kv_heads, n, n]
    choices = (probs[:, :, None] @ one.v[None, None]).reshape(one.heads, kv_heads**2, one.n, -1)
    keys, values = np.divmod(matched_heads(theirs, choices, True), kv_heads)
    if (keys == one.reads).all():
        return
    chosen = softmax(one.scores_of(keys) * one.scale, one.visible)
    made = one.context_of(chosen, values)
    if _near(one, one.asked.x, made):
        both = (keys == values).all()
        words = heads_said(keys, one, "key and value" if both else "key")
        words += "" if both else ", and other values"
        place, free = place_of_heads(keys, one), int(np.sum(keys != one.reads) + np.sum(values != one.reads))
        code = "tile or repeat for repeat_interleave, or key heads in another order"
        yield Guess("attention.heads", words, one.following(context=made), free, place, code=code)


def _scales(one: Attending, theirs: Array) -> Iterator[Guess]:
    """One scale for all scores, found on a few rows."""
    rows = np.arange(max(0, one.n - 8), one.n)
    scores, there, values = one.scores[:, rows], one.visible[rows], one.v[one.reads]

    def off(log: float) -> float:
        made = softmax(scores * np.exp(log), there) @ values
        return float(np.linalg.norm(made - theirs[:, rows]))

    logs = np.linspace(np.log(one.scale) - 7, np.log(one.scale) + 7, 141)
    best = float(min(logs, key=off))
    width = float(logs[1] - logs[0])
    for _ in range(10):
        best = float(min(np.linspace(best - width, best + width, 21), key=off))
        width /= 8
    for scale in (float(np.exp(best)), -float(np.exp(best))):
        probs = softmax(one.scores * scale, one.visible)
        for mixture in of_the_scores(one, probs):
            if mixture.kind == "attention.scale":
                made = one.context_of(mixture.probs)
                if _near(one, one.asked.x, made):
                    yield Guess(mixture.kind, mixture.words, one.following(context=made), mixture.free)
                break
