"""Which heads, which keys and which features wrong scores are of. numpy only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.affine import factor_said
from llama_ckpt.identify.attending import Attending, softmax
from llama_ckpt.identify.attention_heads import (
    features_summed,
    heads_said,
    keys_moved,
    matched_heads,
    place_of_heads,
)
from llama_ckpt.identify.places import Place, ranges
from llama_ckpt.identify.record import Guess

__all__ = ["scores_guesses"]

Array: TypeAlias = NDArray[Any]


def scores_guesses(one: Attending) -> Iterator[Guess]:
    """Guesses where the scores are the first wrong tensor."""
    scores = one.theirs("attn_scores")
    if scores is None or not np.isfinite(np.where(one.visible, scores, 0.0)).all():
        return
    yield from _scores_of_other_heads(one, scores)
    right = np.where(one.visible, one.scores, 0.0)
    factor = float(np.vdot(right, scores) / (np.vdot(right, right) or 1.0))
    if _near(one, scores, factor * one.scores):
        words = f"scores are recorded times {factor:.6g}"
        if abs(factor / one.scale - 1) < 1e-3:
            words = "scores are recorded after they were scaled by 1/sqrt(head_dim)"
            factor = one.scale
        yield Guess("attention.recorded", words, one.following(scores=factor * one.scores), 1)
        yield _scaled_before(one, factor)
    for words, chosen in keys_moved(one, scores):
        made = np.where(chosen >= 0, one.scores[..., chosen], 0.0)
        if _near(one, scores, made):
            predicted = _with_values(one, made, np.where(chosen[:, None] >= 0, one.v[:, chosen], 0.0))
            free, code = int(np.sum(chosen != np.arange(one.n))), "slots of a cache, or pages of it, mixed up"
            keys = Place(keys=ranges(np.flatnonzero(chosen != np.arange(one.n))), sizes={"keys": one.n})
            parameters = {"keys": chosen.tolist()}
            yield Guess("attention.cache", words, predicted, free, keys, parameters, code)
            made_keys = one.following(scores=made, probs=softmax(made * one.scale, one.visible))
            said = f"{words}; values stand where they should"
            yield Guess("attention.cache", said, made_keys, free + 1, keys, parameters, code)
    for words, coefficients, free in features_summed(one, scores):
        made = (one.q * coefficients) @ one.k[one.reads].transpose(0, 2, 1)
        if _near(one, scores, made):
            probs = softmax(made * one.scale, one.visible)
            parameters = {"coefficients": coefficients.tolist()}
            predicted = one.following(scores=made, probs=probs)
            yield Guess(
                "attention.features", words, predicted, free, parameters=parameters, code="a tile's tail"
            )
    yield from _scores_of_other_tensors(one, scores)


def _scaled_before(one: Attending, factor: float) -> Guess:
    """Queries or keys times a number, after which scores are scaled as always."""
    said = f"{factor:.6g} = 1/sqrt(head_dim)" if factor == one.scale else factor_said(factor)
    words = f"queries or keys are multiplied by {said}, and the scores are scaled as well"
    made = factor * one.scores
    predicted = one.following(scores=made, probs=softmax(made * one.scale, one.visible))
    given = {"factor": factor}
    return Guess("attention.scale", words, predicted, 1, parameters=given, code="q * scale twice")


def _scores_of_other_heads(one: Attending, scores: Array) -> Iterator[Guess]:
    """Other key heads than each query head should read, with their values or with the right ones."""
    rows = slice(max(0, one.n - 16), one.n)
    choices = one.q[:, None, rows] @ one.k[None].transpose(0, 1, 3, 2)
    reads = matched_heads(scores[:, rows], choices, one.visible[rows])
    made = one.scores_of(reads)
    if (reads != one.reads).any() and _near(one, scores, made):
        probs = softmax(made * one.scale, one.visible)
        rest = (int(np.sum(reads != one.reads)), place_of_heads(reads, one), {"reads": reads.tolist()})
        code = "tile or repeat for repeat_interleave, or key heads in another order"
        words = heads_said(reads, one, "key and value")
        both = one.following(scores=made, probs=probs, values=reads)
        yield Guess("attention.heads", words, both, *rest, code)
        words = heads_said(reads, one, "key") + ", and the right values"
        yield Guess("attention.heads", words, one.following(scores=made, probs=probs), *rest, code)
    yield from _heads_exchanged(one, scores, rows)


def _heads_exchanged(one: Attending, scores: Array, rows: slice) -> Iterator[Guess]:
    """Scores of one query head in the place of another's."""
    right = one.scores[:, rows]
    every = np.broadcast_to(right[None], (one.heads, *right.shape))
    chosen = matched_heads(scores[:, rows], every, one.visible[rows])
    wrong = np.flatnonzero(chosen != np.arange(one.heads))
    made = one.scores[chosen]
    if len(wrong) and _near(one, scores, made):
        words = (
            f"heads are exchanged: in the place of heads {_numbers(wrong)} stand {_numbers(chosen[wrong])}"
        )
        probs = softmax(made * one.scale, one.visible)
        predicted = one.following(scores=made, probs=probs, values=one.reads[chosen])
        place = Place(heads=ranges(wrong), sizes={"heads": one.heads})
        yield Guess("attention.heads", words, predicted, len(wrong), place, {"heads": chosen.tolist()})


def _numbers(values: Any) -> str:
    return ", ".join(str(int(value)) for value in values[:12])


def _scores_of_other_tensors(one: Attending, scores: Array) -> Iterator[Guess]:
    """Queries or keys as they were before RoPE, values for keys."""
    theirs = one.asked.around.theirs
    queries: dict[str, Array] = {"q_rope": one.q}
    keys: dict[str, Array] = {"k_rope": one.k, "v": one.v}
    for point, kinds, like in (("q", queries, one.q), ("k", keys, one.k)):
        if point in theirs and np.shape(theirs[point]) == like.transpose(1, 0, 2).shape:
            kinds[point] = np.asarray(theirs[point], np.float64).transpose(1, 0, 2)
    for q_name, q in queries.items():
        for k_name, k in keys.items():
            if (q_name, k_name) == ("q_rope", "k_rope") or k.shape != one.k.shape:
                continue
            made = q @ k[one.reads].transpose(0, 2, 1)
            if _near(one, scores, made):
                words = f"scores are of {q_name} and {k_name} instead of q_rope and k_rope"
                predicted = one.following(scores=made, probs=softmax(made * one.scale, one.visible))
                yield Guess("attention.input", words, predicted, 1, code="what RoPE returns is not used")


def _with_values(one: Attending, scores: Array, values: Array) -> dict[str, Array]:
    """What follows where the values stand elsewhere as well, `[kv_heads, n, d]`."""
    probs = softmax(scores * one.scale, one.visible)
    mixed = probs @ values[one.reads]
    context = mixed.transpose(1, 0, 2).reshape(one.n, -1)
    return one.following(scores=scores, probs=probs, context=context)


def _near(one: Attending, theirs: Array, made: Array) -> bool:
    """Whether scores are as near as rounding may leave them, where they are judged."""
    off = np.where(one.visible, theirs - made, 0.0)
    size = float(np.linalg.norm(np.where(one.visible, made, 0.0)))
    return float(np.linalg.norm(off)) <= one.tolerance * (size or 1.0)
