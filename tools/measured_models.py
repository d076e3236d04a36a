"""The models that limits are measured on: the embedded one, and random weights in several shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.records import BlockWeights, load_weights

EMBEDDED = Path(__file__).parents[1] / "reference_dumps" / "tiny-32l" / "model.gguf"


@dataclass(frozen=True)
class Shape:
    """A model to measure on.

    Attributes:
        score: standard deviation of the scaled attention scores; trained models reach 2 to 3.
        outlier: how far beyond the others one feature of every embedding lies, as in trained models.
        tokens: how many tokens; a tuple is gone through seed by seed.
        free: whether it also runs free, through all its layers.
        n_experts, n_used: of a mixture of experts; 0 of a dense model.
    """

    name: str
    width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn: int
    n_layers: int = 1
    vocab: int = 512
    score: float = 1.0
    outlier: float = 1.0
    first_position: int = 0
    tokens: tuple[int, ...] = (1, 2, 8, 24)
    free: bool = False
    n_experts: int = 0
    n_used: int = 0


SHAPES = (
    Shape("trained", 64, 4, 4, 16, 192, n_layers=32, free=True),
    Shape("random", 64, 4, 4, 16, 192, n_layers=32, free=True),
    Shape("steep", 64, 4, 4, 16, 192, score=2.5, first_position=4000),
    Shape("grouped", 256, 8, 2, 64, 704, n_layers=4, score=2.0, free=True),
    Shape("outlier", 256, 4, 4, 64, 704, outlier=100.0, score=2.0),
    Shape("wide", 4096, 4, 2, 128, 512, score=2.0),
    Shape("wide ffn", 128, 4, 4, 32, 11008, score=2.0),
)
"""The embedded model itself, and random weights in its shape; far positions; grouped heads; a feature
that dwarfs the rest; and the longest sums of Llama-2-7B, over 4,096 and 11,008 products, with few rows
so that they take seconds."""


MIXTURE = Shape("mixture", 64, 4, 2, 16, 96, n_layers=16, score=2.0, free=True, n_experts=8, n_used=2)
"""For the points that a mixture of experts alone has; it runs in the layers alone."""

ALL_SHAPES = (*SHAPES, MIXTURE)


def made_model(shape: Shape, seed: int) -> tuple[Any, Any]:
    """A config and float32 weights; every sublayer adds about a third of the residual's norm."""
    g = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=g) * (gain / columns**0.5)

    def norm() -> torch.Tensor:
        return 1 + 0.2 * torch.randn(shape.width, generator=g)

    each = max(1, shape.n_experts)
    q_width, kv_width = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim

    def block() -> BlockWeights:
        return BlockWeights(
            attn_norm=norm(),
            wq=matrix(q_width, shape.width, shape.score),
            wk=matrix(kv_width, shape.width),
            wv=matrix(kv_width, shape.width),
            wo=matrix(shape.width, q_width, 0.5),
            ffn_norm=norm(),
            w_gate=matrix(each * shape.ffn, shape.width, 1.5),
            w_up=matrix(each * shape.ffn, shape.width),
            w_down=matrix(each * shape.width, shape.ffn, 0.5),
            w_router=matrix(each, shape.width, 2.0) if shape.n_experts else None,
        )

    token_embd = torch.randn(shape.vocab, shape.width, generator=g)
    token_embd[:, shape.width // 3] *= shape.outlier
    weights = SimpleNamespace(
        token_embd=token_embd,
        blocks=[block() for _ in range(shape.n_layers)],
        output_norm=norm(),
        output=matrix(shape.vocab, shape.width),
    )
    config = LlamaConfig(
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        width=shape.width,
        ffn=shape.ffn,
        vocab_size=shape.vocab,
        context_length=8192,
        rms_norm_eps=1e-5,
        n_experts=shape.n_experts,
        n_experts_used=shape.n_used,
    )
    return config, weights


def file_model(path: Path) -> tuple[Any, Any]:
    """Config and weights of a GGUF file whose matrices are not quantized."""
    file = open_gguf(path)
    config = LlamaConfig.from_gguf(file)
    return config, load_weights(file, config)


def model_for(shape: Shape, seed: int) -> tuple[Any, Any]:
    """Config and weights: the embedded model's for the shape "trained", else random ones."""
    return file_model(EMBEDDED) if shape.name == "trained" else made_model(shape, seed)
