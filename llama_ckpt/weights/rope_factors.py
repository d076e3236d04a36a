"""Llama 3's scaling of RoPE as files hold it: a divisor of each frequency, the tensor `rope_freqs.weight`.

Slow pairs, which turn less than `low` times within the original context, are slowed by the whole factor; fast
ones, which turn more than `high` times, not at all; in between the two are mixed. Source: Dubey et al. 2024
(arXiv 2407.21783) and the formula of Meta's own program, which llama.cpp's converter writes down as a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["LLAMA3_SCALINGS", "Llama3Scaling", "llama3_factors", "llama3_scaling_of"]


@dataclass(frozen=True)
class Llama3Scaling:
    """What a `config.json` says of Llama 3's scaling.

    Attributes:
        factor: what slow frequencies are divided by.
        low, high: turns within the original context below which a pair is slow, above which it is fast.
        original_context: positions that the model was first trained for.
    """

    factor: float
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192


LLAMA3_SCALINGS: Final = (Llama3Scaling(8.0), Llama3Scaling(32.0))
"""Those of Llama 3.1 and 3.3, and of Llama 3.2."""


def llama3_factors(scaling: Llama3Scaling, head_dim: int, rope_theta: float) -> tuple[float, ...]:
    """The divisor of each of the `head_dim / 2` frequencies, float32 values."""
    factors = []
    for pair in range(head_dim // 2):
        turns = scaling.original_context * rope_theta ** (-2 * pair / head_dim) / (2 * math.pi)
        mixed = (turns - scaling.low) / (scaling.high - scaling.low)
        kept = min(1.0, max(0.0, mixed))
        factors.append(float(np.float32(1.0 / ((1.0 - kept) / scaling.factor + kept))))
    return tuple(factors)


def llama3_scaling_of(factors: tuple[float, ...], head_dim: int, rope_theta: float) -> Llama3Scaling | None:
    """The known scaling that gives these divisors, but for their last bits; None where none does."""
    for scaling in LLAMA3_SCALINGS:
        wanted = llama3_factors(scaling, head_dim, rope_theta)
        if np.allclose(factors, wanted, rtol=1e-5, atol=0):
            return scaling
    return None
