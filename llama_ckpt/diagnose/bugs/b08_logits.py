"""Checkpoint 8: the chain of blocks and the output head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply, Patch, PatchedOracle
from llama_ckpt.judging.to_precision import to_float16

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]


def headed(head: Callable[[PatchedOracle, Array, Any, Any], tuple[Array, Array]]) -> Patch:
    """Another head: `head(right, x, weights, config)` gives what is tapped as the norm, and logits."""

    def output_logits(right: PatchedOracle, x: Any, weights: Any, *, config: Any, tap: Any = None) -> Array:
        normed, logits = head(right, right.float64(x), weights, config)
        if tap:
            tap("output_norm", normed)
        return logits

    return output_logits


def final_norm(right: PatchedOracle, x: Array, weights: Any, config: Any) -> Array:
    normed: Array = right.rms_norm(x, weights.output_norm, eps=config.rms_norm_eps)
    return normed


def without_norm(right: PatchedOracle, x: Array, weights: Any, config: Any) -> tuple[Array, Array]:
    return x, right.head(x, weights.output)


def tied(right: PatchedOracle, x: Array, weights: Any, config: Any) -> tuple[Array, Array]:
    normed = final_norm(right, x, weights, config)
    return normed, right.head(normed, weights.token_embd)


def normed_twice(right: PatchedOracle, x: Array, weights: Any, config: Any) -> tuple[Array, Array]:
    normed = final_norm(right, final_norm(right, x, weights, config), weights, config)
    return normed, right.head(normed, weights.output)


def other_norm(right: PatchedOracle, x: Array, weights: Any, config: Any) -> tuple[Array, Array]:
    normed = right.rms_norm(x, weights.blocks[config.n_layers - 1].ffn_norm, eps=config.rms_norm_eps)
    return normed, right.head(normed, weights.output)


def capped(right: PatchedOracle, x: Array, weights: Any, config: Any) -> tuple[Array, Array]:
    normed = final_norm(right, x, weights, config)
    return normed, 30.0 * np.tanh(right.head(normed, weights.output) / 30.0)


def scaled(right: PatchedOracle, x: Array, weights: Any, config: Any) -> tuple[Array, Array]:
    normed = final_norm(right, x, weights, config)
    return normed, right.head(normed, weights.output) * config.width**-0.5


def stacked(
    order: Callable[[Sequence[int]], Sequence[int]] = lambda numbers: numbers,
    between: Callable[[Array], Array] = lambda x: x,
    table: Callable[[Any], Any] = lambda weights: weights.token_embd,
) -> Patch:
    """Other blocks in the place of 0, 1, 2, …, something done to the stream after each, another embedding."""

    def logits(
        right: PatchedOracle,
        token_ids: Any,
        weights: Any,
        *,
        config: Any,
        positions: Any,
        sequence_ids: Any = None,
        tap: Any = None,
    ) -> Array:
        def show(point: str, array: Array) -> None:
            if tap:
                tap(point, array)

        x = right.embed(token_ids, table(weights))
        show("embd", x)
        for number, used in enumerate(order(range(config.n_layers))):
            options = {"config": config, "positions": positions, "sequence_ids": sequence_ids}

            def inner(point: str, array: Array, number: int = number) -> None:
                show(f"blk.{number}.{point}", array)

            x = between(right.block(x, weights.blocks[used], **options, tap=inner))
            inner("out", x)
        for number in range(len(order(range(config.n_layers))), config.n_layers):
            show(f"blk.{number}.out", x)  # a block left out hands on what it got
        result: Array = right.output_logits(x, weights, config=config, tap=tap)
        return result

    return logits


def text_order(numbers: Sequence[int]) -> Sequence[int]:
    """0, 1, 10, 11, 2, …: names sorted as text."""
    if len(numbers) < 11:
        raise DoesNotApply
    return sorted(numbers, key=str)


def one_before(numbers: Sequence[int]) -> Sequence[int]:
    return [max(number - 1, 0) for number in numbers]


def bug(name: str, sentence: str, patch: Patch, function: str = "logits") -> Bug:
    return Bug(f"logits-{name}", sentence, "8", function, patch)


BUGS = (
    bug("no-final-norm", "the final norm is skipped", headed(without_norm), "output_logits"),
    bug("tied", "the head is the embedding table where the file has its own", headed(tied), "output_logits"),
    bug("final-norm-twice", "the final norm is applied twice", headed(normed_twice), "output_logits"),
    bug(
        "final-norm-weight", "the final norm has the last block's weight", headed(other_norm), "output_logits"
    ),
    bug("capped", "the logits are capped at 30 by tanh, as Gemma 2 does", headed(capped), "output_logits"),
    bug("scaled", "the logits are divided by sqrt(width)", headed(scaled), "output_logits"),
    bug("last-block-skipped", "the last block is skipped", stacked(lambda numbers: numbers[:-1])),
    bug("first-block-skipped", "the first block is skipped", stacked(lambda numbers: numbers[1:])),
    bug("block-before", "each block but the first has the weights of the one before", stacked(one_before)),
    bug(
        "blocks-in-text-order",
        "the blocks stand in the order of their names as text: 0, 1, 10, 11, 2",
        stacked(text_order),
    ),
    bug(
        "embedding-of-head",
        "the embedding is taken from the head's table where the file has its own",
        stacked(table=lambda weights: weights.output),
    ),
    bug("stream-float16", "the stream between blocks is rounded to float16", stacked(between=to_float16)),
)
