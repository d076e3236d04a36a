"""Attention of a long prompt: queries and keys turned, the cache written, and looked back on."""

from __future__ import annotations

import torch
from torch import Tensor

from checkpoints.c08_logits import Tap
from llama_ckpt.engine.products import Rows
from llama_ckpt.engine.room import Room
from llama_ckpt.engine.step import Buffers
from llama_ckpt.kernels.many_rows import turn_kernel
from llama_ckpt.kernels.prompt_attention import halves_kernel, prompt_attention_kernel
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["PromptAttention"]

_PAIR_LIFT = 16.0  # of queries, keys and values as two float16: up to 4,000 fits, and low parts stay normal
_TURNED = 2048  # columns of a token that a program turns
_SPLIT = 4096  # numbers of the cache that a program splits
_LOG2_E = 1.4426950408889634


class PromptAttention:
    """Launches the attention kernels of prompts.

    Args:
        config: the model's shape.
        buffers: their cache is read and written.
        pair: queries, keys, values and probabilities as two float16 numbers each, from a float32 cache.
    """

    def __init__(self, config: LlamaConfig, buffers: Buffers, *, pair: bool) -> None:
        self.config, self.buffers, self.pair = config, buffers, pair
        self._halves: Tensor | None = None

    def run(self, number: int, room: Room, qkv: tuple[Tensor, Tensor], context: Rows) -> None:
        """Turn, cache and look back.

        Args:
            number: of the block, whose cache it is.
            room: the prompt.
            qkv: a product [n, q and k and v], and what it misses; see `products.product`.
            context: [n, q_width], written.
        """
        c, b, n = self.config, self.buffers, qkv[0].shape[0]
        query, query_rest = self._query(room, n)
        keys, values, lift = b.keys[number], b.values[number], _PAIR_LIFT if self.pair else 1.0
        capacity = keys.shape[1]
        turn_kernel[(n, -(-qkv[0].shape[1] // _TURNED))](
            *qkv, b.turns, room.positions, room.span, query, query_rest, keys, values, c.q_width, c.kv_width,
            capacity, HEAD=c.head_dim, BLOCK=_TURNED, LIFT=lift, PAIR=self.pair, num_warps=4,
        )  # fmt: skip
        caches = self._split_cache(room, keys, values) if self.pair else (keys, keys, values, values)
        tile = _tile(n, c.head_dim, self.pair)
        prompt_attention_kernel[(-(-n // tile["ROWS"]), c.n_heads)](
            query, query_rest, *caches, *context.both, room.span, n, capacity,
            c.n_heads // c.n_kv_heads, _LOG2_E * c.head_dim**-0.5 / lift**2,
            HEAD=c.head_dim, PAIR=self.pair, LIFT=lift, **context.keeping(1.0, "REST_LIFT"), **tile,
        )  # fmt: skip

    def _query(self, room: Room, rows: int) -> tuple[Tensor, Tensor]:
        """Two parts that add up to the queries times the lift; without pairs both are the same."""
        like = rows, self.config.q_width, torch.float16
        query = room.take("query", *like)
        return query, room.take("query rest", *like) if self.pair else query

    def _split_cache(self, room: Room, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """One block's cache in float16 pairs: keys, their rests, values, their rests."""
        if self._halves is None:  # zeros: a slot that nobody sees must still be a number
            self._halves = torch.zeros(4, *keys.shape, dtype=torch.float16, device=keys.device)
        kv_heads, capacity, head = keys.shape
        halves_kernel[(-(-capacity * head // _SPLIT), kv_heads)](
            keys, values, self._halves, room.span, capacity,
            LIFT=_PAIR_LIFT, HEAD=head, BLOCK=_SPLIT, num_warps=8,
        )  # fmt: skip
        return tuple(self._halves)

    def show(self, number: int, room: Room, n: int, start: int, see: Tap) -> None:
        """Turned queries of the first `n` rows, and their keys and values as the cache holds them."""
        c, b = self.config, self.buffers
        query, rest = self._query(room, n)
        whole = (query.float() + rest.float()) / _PAIR_LIFT if self.pair else query.float()
        see("q_rope", whole.view(n, c.n_heads, c.head_dim))
        for point, cache in (("k_rope", b.keys), ("v", b.values)):
            rows = cache[number][:, start : start + n].transpose(0, 1)
            see(point, rows.to(torch.float32, copy=True))  # the next sequence is written over these


def _tile(rows: int, head: int, pair: bool) -> dict[str, int]:
    """Rows and slots that a program takes together, and how it is launched: as measured."""
    return {
        "ROWS": min(128, rows),
        "SLOTS": 64,
        "HEAD2": max(16, 1 << (head - 1).bit_length()),
        "num_warps": 8,
        "num_stages": 2 if pair else 3,  # of a pair, three do not fit
    }
