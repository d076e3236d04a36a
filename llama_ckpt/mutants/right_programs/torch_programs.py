"""Correct Llamas that round differently: what the limits are measured on.

The layers of `checkpoints/`, step by step and fused, and a plain program, written out here, that takes
every sum in a given order and rounds every step to its precision. All have the layers' function names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import checkpoints
from checkpoints.c08_logits import output_logits

__all__ = ["ORDERS", "Order", "PlainProgram", "correct_programs"]

Order = Callable[[Tensor, Tensor], Tensor]
"""Products x [n, in] with w [out, in], float32, summed over `in` in some order -> [n, out]."""


def whole(x: Tensor, w: Tensor) -> Tensor:
    """As the BLAS does it."""
    return x @ w.T


def one_by_one(x: Tensor, w: Tensor) -> Tensor:
    """From first to last in one accumulator: the textbook loop, and the worst order there is."""
    total = torch.zeros(x.shape[0], w.shape[0])
    columns = w.T.contiguous()
    for i in range(x.shape[1]):
        total += x[:, i : i + 1] * columns[i]
    return total


def last_to_first(x: Tensor, w: Tensor) -> Tensor:
    """The same loop from the other end."""
    return one_by_one(x.flip(1), w.flip(1))


def chunked(x: Tensor, w: Tensor) -> Tensor:
    """Runs of 32, then their sums: blocked kernels, split-K."""
    parts = [a @ b.T for a, b in zip(torch.split(x, 32, dim=1), torch.split(w, 32, dim=1), strict=True)]
    return torch.stack(parts).cumsum(0)[-1]


def permuted(x: Tensor, w: Tensor) -> Tensor:
    """The features in a random order, then as the BLAS does it."""
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    return x[:, order] @ w[:, order].T


def pairwise(x: Tensor, w: Tensor) -> Tensor:
    """Halves summed apart, down to runs of 8: a tree."""
    if x.shape[1] <= 8:
        return one_by_one(x, w)
    half = x.shape[1] // 2
    return pairwise(x[:, :half], w[:, :half]) + pairwise(x[:, half:], w[:, half:])


ORDERS: dict[str, Order] = {
    "whole": whole,
    "one by one": one_by_one,
    "last to first": last_to_first,
    "chunked": chunked,
    "permuted": permuted,
    "pairwise": pairwise,
}


@dataclass(frozen=True)
class PlainProgram:
    """A Llama from the formulas, every sum in `order`, every result rounded to `dtype`."""

    order: Order
    dtype: torch.dtype

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        """x w^T: both rounded to dtype, products summed in float32, the sum rounded."""
        return self.order(x.float(), w.to(self.dtype).float()).to(self.dtype)

    def embed(self, token_ids: Tensor, weight: Tensor) -> Tensor:
        """Rows of the table: `[n]` to `[n, width]`."""
        return weight[token_ids].to(self.dtype)

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        """`[n, width]`: the mean square in `order`, the root and the product rounded."""
        wide = x.float()
        mean_square = self.order(wide * wide, torch.ones(1, x.shape[1])) / x.shape[1]
        return (wide / torch.sqrt(mean_square + eps)).to(self.dtype) * weight.to(self.dtype)

    def rope(self, q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbours turned; cosine and sine rounded to `dtype` from float64 angles."""
        angles = (positions.double()[:, None] * frequencies)[:, None]
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)

        def turn(x: Tensor) -> Tensor:
            even, odd = x[..., 0::2], x[..., 1::2]
            return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)

        return turn(q), turn(k)

    def qkv(self, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, *, n_heads: int, n_kv_heads: int) -> Any:
        """Three products, `[n, heads, head_dim]` each."""
        heads = (n_heads, n_kv_heads, n_kv_heads)
        return tuple(
            torch.unflatten(self.product(x, w), -1, (n, -1)) for w, n in zip((wq, wk, wv), heads, strict=True)
        )

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, wo: Tensor, *, positions: Tensor, tap: Any = None
    ) -> Tensor:
        """Head by head, scores, probabilities and context each rounded; `[n, width]`."""
        group = q.shape[1] // k.shape[1]
        hidden = positions[None] > positions[:, None]
        heads: list[tuple[Tensor, Tensor, Tensor]] = []
        for head in range(q.shape[1]):
            scores = self.product(q[:, head], k[:, head // group])
            masked = (scores * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
            e = torch.exp(masked.float() - masked.float().amax(-1, keepdim=True))
            probs = (e / self.order(e, torch.ones(1, e.shape[1]))).to(self.dtype)
            heads.append((scores, probs, self.product(probs, v[:, head // group].T)))
        scores, probs, context = (torch.stack(parts, 1) for parts in zip(*heads, strict=True))
        see(tap, attn_scores=scores, attn_probs=probs, attn_context=context.flatten(1))
        return self.product(context.flatten(1), wo)

    def swiglu(self, x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor, tap: Any = None) -> Tensor:
        """Gate and up, their product rounded, down; `[n, width]`."""
        gate, up = self.product(x, w_gate), self.product(x, w_up)
        product = (gate.float() / (1 + torch.exp(-gate.float()))).to(self.dtype) * up
        see(tap, ffn_gate=gate, ffn_up=up, ffn_swiglu=product)
        return self.product(product, w_down)

    def block(self, x: Tensor, weights: Any, *, config: Any, positions: Tensor, tap: Any = None) -> Tensor:
        """The steps of a block in their order, every result rounded; `[n, width]`."""
        w, eps = weights, config.rms_norm_eps
        attn_norm = self.rms_norm(x, w.attn_norm, eps=eps)
        q, k, v = self.qkv(attn_norm, w.wq, w.wk, w.wv, n_heads=config.n_heads, n_kv_heads=config.n_kv_heads)
        see(tap, attn_norm=attn_norm, q=q, k=k, v=v)
        pair = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
        q, k = self.rope(q, k, positions, config.rope_theta ** (-pair / config.head_dim) / config.rope_scale)
        see(tap, q_rope=q, k_rope=k)
        attn_out = self.attention(q, k, v, w.wo, positions=positions, tap=tap)
        ffn_inp = x + attn_out
        ffn_norm = self.rms_norm(ffn_inp, w.ffn_norm, eps=eps)
        see(tap, attn_out=attn_out, ffn_inp=ffn_inp, ffn_norm=ffn_norm)
        ffn_out = self.swiglu(ffn_norm, w.w_gate, w.w_up, w.w_down, tap=tap)
        see(tap, ffn_out=ffn_out)
        return ffn_inp + ffn_out

    def output_logits(self, x: Tensor, weights: Any, *, config: Any, tap: Any = None) -> Tensor:
        """The last norm and the head: `[n, vocab]`."""
        output_norm = self.rms_norm(x, weights.output_norm, eps=config.rms_norm_eps)
        see(tap, output_norm=output_norm)
        return self.product(output_norm, weights.output)

    def logits(
        self, token_ids: Tensor, weights: Any, *, config: Any, positions: Tensor, tap: Any = None
    ) -> Tensor:
        """The whole model from token ids `[n]` to `[n, vocab]`."""
        x = self.embed(token_ids, weights.token_embd)
        see(tap, embd=x)
        for number, block_weights in enumerate(weights.blocks):

            def inner(point: str, tensor: Tensor, number: int = number) -> None:
                see(tap, **{f"blk.{number}.{point}": tensor})

            x = self.block(x, block_weights, config=config, positions=positions, tap=inner)
            inner("out", x)
        return self.output_logits(x, weights, config=config, tap=tap)


def see(tap: Any, **points: Tensor) -> None:
    """Show every point to a tap, if there is one."""
    for name, tensor in points.items():
        if tap:
            tap(name, tensor)


def layers(dtype: torch.dtype) -> SimpleNamespace:
    """The layers of `checkpoints/` under their names, computing in `dtype`."""

    def embed(token_ids: Tensor, weight: Tensor) -> Tensor:
        return checkpoints.embed(token_ids, weight, dtype=dtype)

    def logits(*args: Any, **options: Any) -> Tensor:
        return checkpoints.logits(*args, dtype=dtype, **options)

    names = ("rms_norm", "rope", "qkv", "attention", "swiglu", "block", "softmax")
    functions = {name: getattr(checkpoints, name) for name in names}
    return SimpleNamespace(embed=embed, logits=logits, output_logits=output_logits, **functions)


def correct_programs(dtype: torch.dtype) -> dict[str, Any]:
    """Every correct program of a precision by name."""
    plain = {f"plain, {name}": PlainProgram(order, dtype) for name, order in ORDERS.items()}
    return {"layers": layers(dtype), **plain}
