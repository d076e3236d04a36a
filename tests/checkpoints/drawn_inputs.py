"""Inputs that hypothesis draws: shapes, dtypes, values, and small Llamas without a file.

Hypothesis draws a seed, a scale and what is strewn in; the numbers come from torch's generator, so
that a failing example is small to print and quick to shrink. The domain: a tensor's numbers are normal
around zero with a scale that keeps every result a normal number of its dtype; strewn in, with one
element in sixteen, are zeros, denormals, tiny numbers, and ones sixteen times too large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.records import BlockWeights, ModelWeights

__all__ = [
    "DEVICES",
    "DTYPES",
    "Values",
    "arguments_seed",
    "causal_inputs",
    "heads",
    "position_lists",
    "small_config",
    "small_llama",
    "values",
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]

LARGER = 16.0
"""How many times the scale a strewn-in large element is."""


@dataclass(frozen=True)
class Values:
    """How to fill tensors.

    Attributes:
        seed: of the generator.
        exponent: the scale is two to the power of it.
        strewn: "nothing", "zero", "denormal", "tiny", "large" or "negative".
    """

    seed: int
    exponent: int = 0
    strewn: str = "nothing"

    def tensor(self, *shape: int, dtype: torch.dtype, device: str = "cpu", salt: int = 0) -> Tensor:
        """A tensor of such values; another `salt` gives other numbers."""
        generator = torch.Generator().manual_seed(1000 * self.seed + salt)
        x = torch.randn(shape, generator=generator) * 2.0**self.exponent
        here = torch.rand(shape, generator=generator) < 1 / 16
        tiny = torch.finfo(dtype).tiny
        strewn = {
            "nothing": x,
            "zero": torch.zeros_like(x),
            "denormal": torch.full_like(x, tiny / 4),
            "tiny": torch.full_like(x, 2 * tiny),
            "large": LARGER * x,
            "negative": -x.abs(),
        }[self.strewn]
        return torch.where(here, strewn, x).to(dtype).to(device)


def values(low: int = -3, high: int = 3) -> st.SearchStrategy[Values]:
    """Values whose scale is 2^low to 2^high."""
    strewn = st.sampled_from(["nothing", "zero", "denormal", "tiny", "large", "negative"])
    return st.builds(Values, seed=arguments_seed(), exponent=st.integers(low, high), strewn=strewn)


def arguments_seed() -> st.SearchStrategy[int]:
    """A seed for random numbers."""
    return st.integers(0, 10_000)


@dataclass(frozen=True)
class Heads:
    """How an attention layer is cut into heads."""

    n_heads: int
    n_kv_heads: int
    head_dim: int


def heads() -> st.SearchStrategy[Heads]:
    """Multi-head, grouped and multi-query; head sizes of 8 to 32."""
    return st.builds(
        lambda kv, group, dim: Heads(kv * group, kv, dim),
        st.sampled_from([1, 2, 4]),
        st.sampled_from([1, 2, 4]),
        st.sampled_from([8, 16, 32]),
    )


def position_lists(n: int) -> st.SearchStrategy[list[int]]:
    """`n` consecutive positions, from anywhere in a long context."""
    return st.sampled_from([0, 1, 7, 4_000, 100_000]).map(lambda first: list(range(first, first + n)))


def small_config(
    *,
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int = 16,
    width: int = 64,
    ffn: int = 96,
    vocab: int = 128,
    rms_norm_eps: float = 1e-5,
    rope_theta: float = 10000.0,
    rope_scale: float = 1.0,
) -> LlamaConfig:
    """The shape of a small Llama with grouped heads."""
    return LlamaConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        width=width,
        ffn=ffn,
        vocab_size=vocab,
        context_length=8192,
        rms_norm_eps=rms_norm_eps,
        rope_theta=rope_theta,
        rope_scale=rope_scale,
    )


def small_llama(
    config: LlamaConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> ModelWeights:
    """Random weights of a Llama's usual sizes: matrices keep the scale of what they are given."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(out: int, width: int) -> Tensor:
        return (torch.randn(out, width, generator=generator) / width**0.5).to(dtype).to(device)

    def gains() -> Tensor:
        # Rounded to bfloat16, so that no precision on trial rounds them a second time.
        return (1 + torch.randn(config.width, generator=generator) / 8).bfloat16().float().to(device)

    def block() -> BlockWeights:
        return BlockWeights(
            attn_norm=gains(),
            wq=matrix(config.q_width, config.width),
            wk=matrix(config.kv_width, config.width),
            wv=matrix(config.kv_width, config.width),
            wo=matrix(config.width, config.q_width),
            ffn_norm=gains(),
            w_gate=matrix(config.ffn, config.width),
            w_up=matrix(config.ffn, config.width),
            w_down=matrix(config.width, config.ffn),
        )

    return ModelWeights(
        token_embd=torch.randn(config.vocab_size, config.width, generator=generator).to(dtype).to(device),
        blocks=tuple(block() for _ in range(config.n_layers)),
        output_norm=gains(),
        output=matrix(config.vocab_size, config.width),
    )


def causal_inputs(drawn: Heads, n: int, x: Values, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Queries, keys, values and an output matrix for attention over `n` tokens."""
    width = drawn.n_heads * drawn.head_dim
    return {
        "q": x.tensor(n, drawn.n_heads, drawn.head_dim, dtype=dtype, device=device),
        "k": x.tensor(n, drawn.n_kv_heads, drawn.head_dim, dtype=dtype, device=device, salt=1),
        "v": x.tensor(n, drawn.n_kv_heads, drawn.head_dim, dtype=dtype, device=device, salt=2),
        "wo": Values(x.seed).tensor(width, width, dtype=dtype, device=device, salt=3) / width**0.5,
    }
