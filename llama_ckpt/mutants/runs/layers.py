"""Layers that are right on a prompt in one call, and wrong with a cache, sequences, or odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from checkpoints.c01_rms_norm import rms_norm
from checkpoints.c01b_rope import rope
from checkpoints.c02_qkv import qkv
from checkpoints.c06_swiglu import swiglu
from checkpoints.c07_block import block

__all__ = ["LAYER_BUGS", "LayerBug", "Visible", "attend", "masked"]


@dataclass(frozen=True)
class LayerBug:
    """A wrong layer.

    Attributes:
        name: short, unique. sentence: what it does.
        checkpoint: whose layer it stands for. layer: the function.
        right: what must be said of it, a regular expression.
    """

    name: str
    sentence: str
    checkpoint: str
    layer: Callable[..., Any]
    right: str


LAYER_BUGS: list[LayerBug] = []


def _bug(checkpoint: str, sentence: str, right: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def entered(layer: Callable[..., Any]) -> Callable[..., Any]:
        name = layer.__name__.replace("_", "-")
        LAYER_BUGS.append(LayerBug(name, sentence, checkpoint, layer, right))
        return layer

    return entered


Visible = Callable[[Tensor, int, Any, Tensor], Tensor]
"""Another mask: of the right one, how many rows the call has, the cache and the positions."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    wo: Tensor,
    positions: Tensor,
    cache: Any,
    sequence_ids: Tensor | None,
    otherwise: Visible,
) -> Tensor:
    """Attention, step by step, with another mask; arguments as of checkpoint 3's layer."""
    n = len(q)
    if cache is not None:
        k, v = cache.update(k, v)
        visible = cache.visible(positions, sequence_ids)
    else:
        visible = positions[None] <= positions[:, None]
        if sequence_ids is not None:
            visible = visible & (sequence_ids[None] == sequence_ids[:, None])
    visible = otherwise(visible, n, cache, positions)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    probs = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", probs, v).flatten(1) @ wo.T


def masked(otherwise: Visible, name: str) -> Callable[..., Tensor]:
    """A layer for checkpoint 3 with that mask, under that name."""

    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        wo: Tensor,
        *,
        positions: Tensor,
        cache: Any = None,
        sequence_ids: Tensor | None = None,
    ) -> Tensor:
        return attend(q, k, v, wo, positions, cache, sequence_ids, otherwise)

    attention.__name__ = name
    return attention


def _ever_written(cache: Any) -> Tensor:
    written: Tensor = cache.k.flatten(0, 1).abs().sum((1, 2)) > 0
    return written


def _own_slots(visible: Tensor, cache: Any) -> Tensor:
    return torch.isin(torch.arange(visible.shape[1], device=visible.device), cache.slots)


MASKS: dict[str, tuple[str, str, Visible]] = {
    "one_key_short": (
        "in decoding a token does not see its own key",
        r"one key short",
        lambda seen, n, cache, at: seen & ~_own_slots(seen, cache) if cache is not None and n == 1 else seen,
    ),
    "mask_at_the_top_left": (
        "the causal mask is aligned to the top left",
        r"aligned to the top left",
        lambda seen, n, cache, at: torch.ones_like(seen).tril(),
    ),
    "cache_forgotten": (
        "only this call's keys are seen",
        r"before this call is forgotten",
        lambda seen, n, cache, at: seen if cache is None else seen & _own_slots(seen, cache),
    ),
    "free_slots_count": (
        "slots that nothing was written to count in the softmax",
        r"free slots",
        lambda seen, n, cache, at: seen if cache is None else seen | (cache.positions.flatten() < 0)[None],
    ),
    "later_keys_of_a_chunk": (
        "with a cache all keys are seen, later ones of the call too",
        r"all keys are seen",
        lambda seen, n, cache, at: seen if cache is None else seen | (cache.positions.flatten() >= 0)[None],
    ),
    "taken_back_and_still_seen": (
        "in decoding every slot that a key was ever written to is seen",
        r"taken out of the cache are still seen",
        lambda seen, n, cache, at: (
            seen | _ever_written(cache)[None]
            if cache is not None and n == 1 and len(cache.positions) == 1
            else seen
        ),
    ),
    "first_key_lost": (
        "with a cache the first slot is not seen",
        r"first key is not seen",
        lambda seen, n, cache, at: (
            seen & (torch.arange(seen.shape[1]) > 0) if cache is not None and int(at[0]) > 0 else seen
        ),
    ),
}
for _name, (_sentence, _right, _mask) in MASKS.items():
    _bug("3", _sentence, _right)(masked(_mask, _name))


@_bug("3", "sequences of a batch see each other", r"sequences are not told apart")
def sequences_not_told_apart(
    q: Tensor, k: Tensor, v: Tensor, wo: Tensor, *, positions: Tensor, sequence_ids: Tensor | None = None
) -> Tensor:
    return attend(q, k, v, wo, positions, None, None, lambda seen, *_: seen)


@_bug("6", "features past a multiple of 32 are left out", r"features from 224 on.*tile of 32")
def features_past_a_tile(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    n = len(w_gate) // 32 * 32
    return swiglu(x, w_gate[:n], w_up[:n], w_down[:, :n].contiguous())


@_bug("6", "inputs past a multiple of 16 are left out", r"inputs from 80 on.*tile of 16")
def inputs_past_a_tile(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    n = x.shape[1] // 16 * 16
    return swiglu(x[:, :n].contiguous(), w_gate[:, :n].contiguous(), w_up[:, :n].contiguous(), w_down)


def _rows_kept(made: Any, n: int) -> Any:
    """What a kernel leaves that stops after n rows."""
    tensors = made if isinstance(made, tuple) else (made,)
    cut = []
    for one in tensors:
        kept = one.clone()
        kept[n:] = 0
        cut.append(kept)
    return tuple(cut) if isinstance(made, tuple) else cut[0]


@_bug("6", "rows past 32 are left out", r"rows from 32 on are off")
def rows_past_32(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    made: Tensor = _rows_kept(swiglu(x, w_gate, w_up, w_down), 32)
    return made


@_bug("1", "rows past 128 are left out", r"rows from 128 on are off")
def norms_past_128(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    made: Tensor = _rows_kept(rms_norm(x, weight, eps=eps), 128)
    return made


@_bug("2", "rows past 64 are left out", r"rows from 64 on are off")
def products_past_64(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, *, n_heads: int, n_kv_heads: int) -> Any:
    return _rows_kept(qkv(x, wq, wk, wv, n_heads=n_heads, n_kv_heads=n_kv_heads), 64)


@_bug("1B", "positions are kept in float16: beyond 2,048 every other is lost", r"4,001.*q_rope|turned")
def positions_in_half(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> Any:
    return rope(q, k, positions.half().long(), frequencies)


@_bug("7", "the block hands attention no cache", r"call 2 of 3")
def block_without_cache(
    x: Tensor,
    weights: Any,
    *,
    config: Any,
    positions: Tensor,
    cache: Any = None,
    sequence_ids: Tensor | None = None,
) -> Tensor:
    return block(x, weights, config=config, positions=positions, sequence_ids=sequence_ids)


@_bug("7", "in decoding positions begin anew", r"call 3 of 3")
def positions_begin_anew(
    x: Tensor,
    weights: Any,
    *,
    config: Any,
    positions: Tensor,
    cache: Any = None,
    sequence_ids: Tensor | None = None,
) -> Tensor:
    if cache is not None and len(positions) == 1:
        positions = torch.zeros_like(positions)
    return block(x, weights, config=config, positions=positions, cache=cache, sequence_ids=sequence_ids)
