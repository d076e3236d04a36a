"""Small inputs of single functions, and the benches of mutants, each made once in a process."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from llama_ckpt.ladder.discovery import discover
from llama_ckpt.mutants.models import GivenPrompt, seeded_given
from llama_ckpt.mutants.trial import Bench
from llama_ckpt.points import Case

__all__ = ["bench", "prompt", "rope_case"]


@cache
def prompt(shape: str = "alike", seed: int = 0) -> GivenPrompt:
    """A small model and a prompt of 8 tokens."""
    return seeded_given(shape, seed)


@cache
def bench(shape: str = "alike", seed: int = 0) -> Bench:
    """What mutants of that prompt are tried on."""
    return Bench(prompt(shape, seed), discover())


def rope_case(n: int = 8, n_heads: int = 4, head_dim: int = 16, first: int = 0) -> Case:
    """A call of RoPE on normal numbers."""
    generator = np.random.default_rng(n)
    arguments: dict[str, Any] = {
        "q": generator.standard_normal((n, n_heads, head_dim)),
        "k": generator.standard_normal((n, n_heads, head_dim)),
        "positions": first + np.arange(n),
        "frequencies": 1e4 ** (-np.arange(head_dim // 2) / (head_dim // 2)),
    }
    return Case("rope", arguments, ("blk.0.q_rope", "blk.0.k_rope"))
