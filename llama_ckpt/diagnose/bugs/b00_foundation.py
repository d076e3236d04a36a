"""Checkpoint 0: the prompt's tokens, and the embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.misread_weights import nibbles_interleaved
from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply, Patch, PatchedOracle
from llama_ckpt.judging.to_precision import to_bfloat16

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]


def tokens(change: Callable[[Any, list[int], str], list[int]]) -> Patch:
    """Other tokens: `change(tokenizer, right ids, text)`."""

    def tokenize(right: PatchedOracle, tokenizer: Any, text: str) -> Array:
        return np.asarray(change(tokenizer, right.tokenize(tokenizer, text).tolist(), text), dtype=np.int64)

    return tokenize


def without_bos(tokenizer: Any, ids: list[int], text: str) -> list[int]:
    if ids[:1] != [tokenizer.bos_id]:
        raise DoesNotApply
    return ids[1:]


def bos_twice(tokenizer: Any, ids: list[int], text: str) -> list[int]:
    return [tokenizer.bos_id, *ids]


def eos_added(tokenizer: Any, ids: list[int], text: str) -> list[int]:
    return [*ids, tokenizer.eos_id]


def without_space(tokenizer: Any, ids: list[int], text: str) -> list[int]:
    """Tokens merged with no space before the text: those after a newline, which nothing merges with."""
    newline = tokenizer.encode("\n", add_bos=False)
    joined = tokenizer.encode("\n" + text, add_bos=False)
    if joined[: len(newline)] != newline or not tokenizer.add_space_prefix:
        raise DoesNotApply
    return [*ids[:1], *joined[len(newline) :]]


def byte_by_byte(tokenizer: Any, ids: list[int], text: str) -> list[int]:
    """Nothing is merged: every character its own token, as when scores or merges are not read."""
    newline = len(tokenizer.encode("\n", add_bos=False))
    each = [tokenizer.encode("\n" + character, add_bos=False)[newline:] for character in " " + text]
    return [*ids[:1], *(token for pieces in each for token in pieces)]


def embedded(change: Callable[[PatchedOracle, Array, Array], Array]) -> Patch:
    """Another lookup: `change(right, ids, weight)`."""

    def embed(right: PatchedOracle, token_ids: Any, weight: Any, tap: Any = None) -> Array:
        return change(right, np.asarray(token_ids, dtype=np.int64), np.asarray(weight))

    return embed


def scaled(right: PatchedOracle, ids: Array, weight: Array) -> Array:
    return np.asarray(right.embed(ids, weight) * weight.shape[1] ** 0.5)


def next_row(right: PatchedOracle, ids: Array, weight: Array) -> Array:
    return np.asarray(right.embed((ids + 1) % len(weight), weight))


def column_major(right: PatchedOracle, ids: Array, weight: Array) -> Array:
    vocab, width = weight.shape
    return np.asarray(right.embed(ids, weight.T.reshape(vocab, width)))


def nibbles(right: PatchedOracle, ids: Array, weight: Array) -> Array:
    return nibbles_interleaved(right.embed(ids, weight))


def half_rounded(right: PatchedOracle, ids: Array, weight: Array) -> Array:
    return to_bfloat16(right.embed(ids, weight))


BUGS = (
    Bug("tokens-bos-missing", "the prompt begins without BOS", "0", "tokenize", tokens(without_bos)),
    Bug("tokens-bos-twice", "BOS stands there twice", "0", "tokenize", tokens(bos_twice)),
    Bug("tokens-eos-added", "EOS is put behind the prompt", "0", "tokenize", tokens(eos_added)),
    Bug("tokens-space-missing", "no space is put before the text", "0", "tokenize", tokens(without_space)),
    Bug(
        "tokens-not-merged",
        "each character is a token, nothing is merged",
        "0",
        "tokenize",
        tokens(byte_by_byte),
    ),
    Bug(
        "embed-scaled",
        "the embedding is multiplied by sqrt(width), as Gemma does",
        "0",
        "embed",
        embedded(scaled),
    ),
    Bug("embed-next-row", "the embedding is the next token's row", "0", "embed", embedded(next_row)),
    Bug(
        "embed-column-major",
        "the embedding table is read column by column",
        "0",
        "embed",
        embedded(column_major),
    ),
    Bug(
        "embed-nibbles-interleaved",
        "each block of 32 features is read as if nibbles (2i, 2i+1) shared a byte instead of (i, i+16)",
        "0",
        "embed",
        embedded(nibbles),
    ),
    Bug("embed-bfloat16", "the embedding is rounded to bfloat16", "0", "embed", embedded(half_rounded)),
)
