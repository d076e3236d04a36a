"""Checkpoint 3: attention. Each bug is the right attention with one of its `Steps` gone wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply, Patch, PatchedOracle
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]


def causal(query: Array, key: Array) -> Array:
    return key <= query


def shared(n_heads: int, n_kv_heads: int) -> Array:
    return np.arange(n_heads) // (n_heads // n_kv_heads)


def softmax(right: PatchedOracle, scaled: Array, visible: Array) -> Array:
    probs: Array = right.probabilities(np.where(visible, scaled, -np.inf))
    return probs


def heads_in_a_row(context: Array) -> Array:
    n_heads, n, head_dim = context.shape
    return context.transpose(1, 0, 2).reshape(n, n_heads * head_dim)


@dataclass(frozen=True)
class Steps:
    """The steps of attention; heads come first inside: q, k and v are `[head, token, head_dim]`.

    Attributes:
        divisor: of n_heads and head_dim, what the scores are divided by.
        sees: of the positions of query and key, whether the one sees the other.
        kv_head: of n_heads and n_kv_heads, which key head each query head reads.
        value_head: the same of values; None: as of keys.
        normalize: of scaled scores and what is visible, the probabilities.
        asked: of the queries, what is used of them.
        cached: of keys or of values, what the cache holds of them.
        cached_keys, cached_values: the same of one of them alone.
        join: of the context `[head, token, head_dim]`, one row a token.
        project: of wo, the matrix that is used.
        swapped: whether keys stand in the place of values and the reverse.
    """

    divisor: Callable[[int, int], float] = lambda n_heads, head_dim: head_dim**0.5
    sees: Callable[[Array, Array], Array] = causal
    kv_head: Callable[[int, int], Array] = shared
    normalize: Callable[[PatchedOracle, Array, Array], Array] = softmax
    value_head: Callable[[int, int], Array] | None = None
    asked: Callable[[Array], Array] = lambda x: x
    cached: Callable[[Array], Array] = lambda x: x
    cached_keys: Callable[[Array], Array] = lambda x: x
    cached_values: Callable[[Array], Array] = lambda x: x
    join: Callable[[Array], Array] = heads_in_a_row
    project: Callable[[Array], Array] = lambda wo: wo
    swapped: bool = False


def attend(**wrong: Any) -> Patch:
    """Attention with these steps."""
    steps = Steps(**wrong)

    def attention(
        right: PatchedOracle,
        q: Any,
        k: Any,
        v: Any,
        wo: Any,
        *,
        positions: Any,
        sequence_ids: Any = None,
        tap: Any = None,
    ) -> Array:
        queries, keys, values = (right.float64(x).transpose(1, 0, 2) for x in (q, k, v))
        if steps.swapped:
            keys, values = values, keys
        n_heads, _, head_dim = queries.shape
        chosen = steps.kv_head(n_heads, len(keys)), (steps.value_head or steps.kv_head)(n_heads, len(keys))
        queries = steps.asked(queries)
        keys = steps.cached_keys(steps.cached(keys))[chosen[0]]
        values = steps.cached_values(steps.cached(values))[chosen[1]]
        visible = right.visible(np.zeros(len(keys[0]), np.int64), sequence_ids)  # the same sequence
        at = np.asarray(positions)
        visible = visible & steps.sees(at[:, None], at[None, :])

        def show(point: str, array: Array) -> None:
            if tap:
                tap(point, array)

        # Each as soon as it is there: who has seen enough ends the call.
        scores = right.scores(queries, keys)
        show("attn_scores", scores.transpose(1, 0, 2))
        factor = head_dim**0.5 / steps.divisor(n_heads, head_dim)
        probs = steps.normalize(right, right.scaled(scores, head_dim) * factor, visible)
        show("attn_probs", probs.transpose(1, 0, 2))
        context = steps.join(right.mixed(probs, values))
        show("attn_context", context)
        out: Array = right.to_stream(context, steps.project(wo))
        return out

    return attention


def mask_after_softmax(right: PatchedOracle, scaled: Array, visible: Array) -> Array:
    probs: Array = right.normalized_exp(scaled)
    return np.where(visible, probs, 0.0)


def zero_for_hidden(right: PatchedOracle, scaled: Array, visible: Array) -> Array:
    probs: Array = right.normalized_exp(np.where(visible, scaled, 0.0))
    return probs


def over_queries(right: PatchedOracle, scaled: Array, visible: Array) -> Array:
    turned = np.where(visible, scaled, -np.inf).swapaxes(-1, -2)
    probs: Array = right.normalized_exp(turned).swapaxes(-1, -2)
    return probs


def base_two(right: PatchedOracle, scaled: Array, visible: Array) -> Array:
    """exp2 of scores that were not multiplied by log2(e)."""
    return softmax(right, scaled * np.log(2.0), visible)


def one_more(right: PatchedOracle, scaled: Array, visible: Array) -> Array:
    """exp(s) / (1 + sum exp(s)): a sink that Llama has not."""
    hidden = np.where(visible, scaled, -np.inf)
    sink = np.zeros_like(hidden[..., :1])
    probs: Array = right.normalized_exp(np.concatenate([hidden, sink], axis=-1))
    return np.asarray(probs[..., :-1])


def capped(right: PatchedOracle, scaled: Array, visible: Array) -> Array:
    return softmax(right, 50.0 * np.tanh(scaled / 50.0), visible)


def half_probs(right: PatchedOracle, scaled: Array, visible: Array) -> Array:
    return to_float16(softmax(right, scaled, visible))


def bfloat16_probs(right: PatchedOracle, scaled: Array, visible: Array) -> Array:
    return to_bfloat16(softmax(right, scaled, visible))


def modulo(n_heads: int, n_kv_heads: int) -> Array:
    if n_kv_heads in (1, n_heads):
        raise DoesNotApply
    return np.arange(n_heads) % n_kv_heads


def half_scores(right: PatchedOracle, scaled: Array, visible: Array) -> Array:
    return softmax(right, to_float16(scaled), visible)


def first(n_heads: int, n_kv_heads: int) -> Array:
    if n_kv_heads == 1:
        raise DoesNotApply
    return np.zeros(n_heads, dtype=np.int64)


def one_slot_late(x: Array) -> Array:
    return np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)


def heads_not_moved(context: Array) -> Array:
    n_heads, n, head_dim = context.shape
    return context.reshape(n, n_heads * head_dim)


def transposed(wo: Array) -> Array:
    if wo.shape[0] != wo.shape[1]:
        raise DoesNotApply
    turned: Array = wo.T
    return turned


def itself_hidden(query: Array, key: Array) -> Array:
    """The first token keeps itself, or nothing would be left to it."""
    sees: Array = (key < query) | ((query == query.min()) & (key == query))
    return sees


def bug(name: str, sentence: str, *, sees_later: bool = False, **wrong: Any) -> Bug:
    return Bug(f"attention-{name}", sentence, "3", "attention", attend(**wrong), sees_later)


BUGS = (
    bug("scale-missing", "the scores are not divided by sqrt(head_dim)", divisor=lambda heads, dim: 1.0),
    bug(
        "scale-twice", "the scores are divided by sqrt(head_dim) twice", divisor=lambda heads, dim: float(dim)
    ),
    bug(
        "scale-of-width",
        "the scores are divided by sqrt(width) instead of sqrt(head_dim)",
        divisor=lambda heads, dim: (heads * dim) ** 0.5,
    ),
    bug(
        "mask-missing",
        "tokens see later tokens: there is no mask",
        sees=lambda q, k: k <= k.max() + 0 * q,
        sees_later=True,
    ),
    bug(
        "mask-sees-next",
        "the mask is off by one: a token sees the next one",
        sees=lambda q, k: k <= q + 1,
        sees_later=True,
    ),
    bug("mask-hides-itself", "the mask is off by one: a token does not see itself", sees=itself_hidden),
    bug("mask-window-4", "a token sees the last 4 tokens only", sees=lambda q, k: (k <= q) & (k > q - 4)),
    bug(
        "mask-after-softmax",
        "the mask is applied after the softmax",
        normalize=mask_after_softmax,
        sees_later=True,
    ),
    bug(
        "mask-of-zeros",
        "hidden scores are set to 0 instead of minus infinity",
        normalize=zero_for_hidden,
        sees_later=True,
    ),
    bug(
        "softmax-over-queries",
        "the softmax runs over the queries, not the keys",
        normalize=over_queries,
        sees_later=True,
    ),
    bug("softmax-base-2", "the softmax takes powers of 2 instead of e", normalize=base_two),
    bug("softmax-sink", "the softmax's sum has one more term, exp(0)", normalize=one_more),
    bug("scores-capped", "the scores are capped at 50 by tanh, as Gemma 2 does", normalize=capped),
    bug("probs-float16", "the probabilities are rounded to float16", normalize=half_probs),
    bug("probs-bfloat16", "the probabilities are rounded to bfloat16", normalize=bfloat16_probs),
    bug("scores-float16", "the scaled scores are rounded to float16", normalize=half_scores),
    bug("group-modulo", "query head h reads key head h % n_kv_heads instead of h // group", kv_head=modulo),
    bug(
        "group-modulo-keys",
        "query head h reads keys of head h % n_kv_heads instead of h // group, and the right values",
        kv_head=modulo,
        value_head=shared,
    ),
    bug(
        "group-modulo-values",
        "query head h reads values of head h % n_kv_heads instead of h // group, and the right keys",
        value_head=modulo,
    ),
    bug("group-first", "every query head reads the first key head", kv_head=first),
    bug("cache-one-late", "keys and values are cached one slot late", cached=one_slot_late),
    bug("cache-float16", "the cache holds keys and values in float16", cached=to_float16),
    bug("cache-bfloat16", "the cache holds keys and values in bfloat16", cached=to_bfloat16),
    bug("cached-keys-float16", "the cache holds keys in float16", cached_keys=to_float16),
    bug("cached-values-float16", "the cache holds values in float16", cached_values=to_float16),
    bug(
        "inputs-float16",
        "queries, keys and values are rounded to float16 before attention",
        asked=to_float16,
        cached=to_float16,
    ),
    bug(
        "inputs-bfloat16",
        "queries, keys and values are rounded to bfloat16 before attention",
        asked=to_bfloat16,
        cached=to_bfloat16,
    ),
    bug("values-for-keys", "keys and values are exchanged", swapped=True),
    bug(
        "heads-not-moved",
        "the context's heads are not moved behind the tokens",
        join=heads_not_moved,
        sees_later=True,
    ),
    bug("wo-transposed", "the output projection is transposed", project=transposed),
)
