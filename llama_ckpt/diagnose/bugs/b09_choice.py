"""Checkpoints 9 and 10: the last row of the logits, and its largest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply, Patch, PatchedOracle
from llama_ckpt.judging.to_precision import to_float16

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]


def row(pick: Callable[[Array], Array]) -> Patch:
    """Another row: `pick(logits [n, vocab])`."""

    def last_logits(right: PatchedOracle, logits: Any, tap: Any = None) -> Array:
        return pick(right.float64(logits))

    return last_logits


def last_but_one(logits: Array) -> Array:
    if len(logits) < 2:
        raise DoesNotApply
    return np.asarray(logits[-2])


def first(logits: Array) -> Array:
    if len(logits) < 2:
        raise DoesNotApply
    return np.asarray(logits[0])


def last_by_value(logits: Array) -> Array:
    """A maximum over the tokens, as pooling takes it."""
    if len(logits) < 2:
        raise DoesNotApply
    largest: Array = logits.max(axis=0)
    return largest


def log_probabilities(logits: Array) -> Array:
    last = logits[-1]
    shifted = last - last.max()
    found: Array = shifted - np.log(np.exp(shifted).sum())
    return found


def half(logits: Array) -> Array:
    return to_float16(logits[-1])


def chosen(pick: Callable[[Array], Array]) -> Patch:
    """Another choice: `pick(logits [..., vocab])`."""

    def argmax(right: PatchedOracle, logits: Any, tap: Any = None) -> NDArray[np.int64]:
        return np.asarray(pick(right.float64(logits)), dtype=np.int64)

    return argmax


def highest_id(x: Array) -> Array:
    found: Array = x.shape[-1] - 1 - np.argmax(x[..., ::-1], axis=-1)
    return found


def by_size(x: Array) -> Array:
    found: Array = np.argmax(np.abs(x), axis=-1)
    return found


def smallest(x: Array) -> Array:
    found: Array = np.argmin(x, axis=-1)
    return found


def from_one(x: Array) -> Array:
    found: Array = np.argmax(x, axis=-1) + 1
    return found


def over_tokens(x: Array) -> Array:
    """The token with the largest logit for each id, cut to as many as there are tokens."""
    if x.ndim < 2 or len(x) < 3:
        raise DoesNotApply
    found: Array = np.argmax(x, axis=0)[: len(x)]
    return found


BUGS = (
    Bug(
        "last-row-before",
        "the last row but one of the logits is taken",
        "9",
        "last_logits",
        row(last_but_one),
    ),
    Bug("last-row-first", "the first row of the logits is taken", "9", "last_logits", row(first)),
    Bug(
        "last-row-largest",
        "each logit is the largest over all tokens",
        "9",
        "last_logits",
        row(last_by_value),
    ),
    Bug("last-row-log", "log probabilities are given for logits", "9", "last_logits", row(log_probabilities)),
    Bug("last-row-float16", "the last logits are rounded to float16", "9", "last_logits", row(half)),
    Bug("argmax-highest-id", "of equal logits the highest id is taken", "10", "argmax", chosen(highest_id)),
    Bug("argmax-by-size", "the logit of largest magnitude is taken", "10", "argmax", chosen(by_size)),
    Bug("argmax-smallest", "the smallest logit is taken", "10", "argmax", chosen(smallest)),
    Bug("argmax-from-one", "token ids are counted from 1", "10", "argmax", chosen(from_one)),
    Bug(
        "argmax-over-tokens",
        "the maximum runs over the tokens, not over the vocabulary",
        "10",
        "argmax",
        chosen(over_tokens),
    ),
)
