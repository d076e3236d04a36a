"""A long prompt through the tensor cores: half-precision inputs, float32 sums, float32 residual.

Weights are dense float16 here, exact for a float16 file. With precision "high" an activation goes in
as two float16 numbers, and so does a weight that one cannot hold: two or three products for one, and
errors of float32's order. Attention is torch's; a float32 cache makes it compute in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from llama_ckpt.config import LlamaConfig
from llama_ckpt.engine.step import Buffers, Tap, block_tap
from llama_ckpt.engine.weights import LOW_PART, Dense, EngineWeights
from llama_ckpt.kernels.many_rows import norm_kernel, swiglu_kernel, turn_kernel
from llama_ckpt.quants import exact_matmul

__all__ = ["Prefill"]

Pair = tuple[Tensor, Tensor | None]
"""float16 high part, and low part times 2048 or None."""

_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class Prefill:
    """Runs prompts on the buffers that steps use.

    Args:
        config: the model's shape.
        weights: its dense weights are made on first use.
        buffers: the cache is written; the rest is left alone.
        pair: activations as high + low part.
    """

    def __init__(self, config: LlamaConfig, weights: EngineWeights, buffers: Buffers, *, pair: bool) -> None:
        self.config, self.weights, self.buffers, self.pair = config, weights, buffers, pair

    def run(
        self, token_ids: Tensor, positions: Tensor, start: int, *, last_only: bool, tap: Tap | None
    ) -> Tensor:
        """The logits [n or 1, vocab] of int64 tokens [n] that take the slots from `start` on."""
        with exact_matmul():
            return self._run(token_ids, positions.int(), start, last_only, tap)

    def _run(
        self, token_ids: Tensor, positions: Tensor, start: int, last_only: bool, tap: Tap | None
    ) -> Tensor:
        n = token_ids.shape[0]
        x = functional.embedding(token_ids, self.weights.embedding).float()
        slots = torch.arange(start, start + n, dtype=torch.int32, device=x.device)
        if tap:
            tap("embd", x)
        for number in range(self.config.n_layers):
            x = self.block(number, x, positions, slots, start, tap)
        return self.head(x[-1:] if last_only else x)

    def block(
        self, number: int, x: Tensor, positions: Tensor, slots: Tensor, start: int, tap: Tap | None
    ) -> Tensor:
        """One block on the residual stream, float32 [n, width] to the same; int32 positions and slots [n]."""
        (qkv, wo, gate_up, down), block = self.weights.dense[number], self.weights.blocks[number]
        see = block_tap(number, tap)
        h = self._norm(x, block.attn_norm)
        context = self._attention(number, self._product(h, qkv), positions, slots, start, see)
        x = self._product(context, wo, x)
        if see:
            see("ffn_inp", x)
        hidden = self._swiglu(self._product(self._norm(x, block.ffn_norm), gate_up))
        if see:
            see("ffn_swiglu", self._whole(hidden))
        x = self._product(hidden, down, x)
        if see:
            see("out", x)
        return x

    def head(self, x: Tensor) -> Tensor:
        """The last norm and the logits, float32 [n, vocab], of the residual stream [n, width]."""
        return self._product(self._norm(x, self.weights.output_norm), self.weights.dense_output, logits=True)

    def _whole(self, pair: Pair) -> Tensor:
        high, low = pair
        return high.float() if low is None else high.float() + low.float() / LOW_PART

    def _product(self, h: Pair, w: Dense, x: Tensor | None = None, logits: bool = False) -> Tensor:
        """W h, added to x if there is one; float32 unless it goes on in half precision anyway."""
        high, low = h
        weight = w.high.t()
        if low is None:
            if x is not None:
                return torch.addmm(x, high, weight, out_dtype=torch.float32)
            return torch.mm(high, weight, out_dtype=torch.float32) if logits else torch.mm(high, weight)
        rest = torch.mm(low, weight, out_dtype=torch.float32)
        if w.low is not None:
            rest = torch.addmm(rest, high, w.low.t(), out_dtype=torch.float32)
        whole = torch.addmm(rest, high, weight, out_dtype=torch.float32, beta=1 / LOW_PART)
        return whole if x is None else x + whole

    def _pair(self, like: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
        """Room for a high and a low part; without pairs both are the same."""
        high = torch.empty(shape, dtype=torch.float16, device=like.device)
        return high, torch.empty_like(high) if self.pair else high

    def _norm(self, x: Tensor, gain: Tensor) -> Pair:
        n, width = x.shape
        high, low = self._pair(x, n, width)
        norm_kernel[(n,)](
            x, gain, high, low, width, self.config.rms_norm_eps,
            WIDTH2=1 << (width - 1).bit_length(), PAIR=self.pair, num_warps=8,
        )  # fmt: skip
        return high, low if self.pair else None

    def _swiglu(self, gate_up: Tensor) -> Pair:
        n, ffn = gate_up.shape[0], gate_up.shape[1] // 2
        high, low = self._pair(gate_up, n, ffn)
        swiglu_kernel[(n, -(-ffn // 1024))](gate_up, high, low, ffn, BLOCK=1024, PAIR=self.pair, num_warps=4)
        return high, low if self.pair else None

    def _attention(
        self, number: int, qkv: Tensor, positions: Tensor, slots: Tensor, start: int, see: Tap | None
    ) -> Pair:
        c, b, n = self.config, self.buffers, qkv.shape[0]
        query = torch.empty(n, c.n_heads, c.head_dim, dtype=b.keys.dtype, device=qkv.device)
        keys, values = b.keys[number], b.values[number]
        turn_kernel[(n, -(-qkv.shape[1] // 2048))](
            qkv, b.turns, positions, slots, query, keys, values, c.q_width, c.kv_width, b.keys.shape[2],
            HEAD=c.head_dim, BLOCK=2048, num_warps=8,
        )  # fmt: skip
        k, v = (cache[None, :, : start + n] for cache in (keys, values))
        mask = None
        if start:
            at = torch.arange(start + n, device=qkv.device)
            mask = at[None, :] <= slots[:, None]
        with sdpa_kernel(_BACKENDS, set_priority=True):
            context = functional.scaled_dot_product_attention(
                query.transpose(0, 1)[None], k, v, attn_mask=mask, is_causal=mask is None,
                enable_gqa=c.n_heads != c.n_kv_heads,
            )  # fmt: skip
        context = context[0].transpose(0, 1).reshape(n, c.q_width)
        if see:
            see("q_rope", query.float())
            see("k_rope", k[0, :, start:].transpose(0, 1).float())
            see("v", v[0, :, start:].transpose(0, 1).float())
            see("attn_context", context.float())
        if not self.pair:
            return context, None
        high = context.half()
        return high, ((context - high) * LOW_PART).half()
