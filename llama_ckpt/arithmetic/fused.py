"""A fused attention kernel's mixing of values: some keys at a time, beside a running maximum and sum.

    m' = max(m, scores)   w = exp(scores - m')   total = total · exp(m - m') + w · values   at last / Σ w

Rabe and Staats 2021, https://arxiv.org/abs/2112.05682; Dao et al. 2022, https://arxiv.org/abs/2205.14135.
The kernel rounds w, and keeps `total` in a format that it is rounded to after each step. numpy only.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.formats import rounded

__all__ = ["fused"]

Array: TypeAlias = NDArray[np.float64]


def fused(probs: Array, values: Array, step: int, weights: str, sums: str) -> Array:
    """The context `[n_heads, n, head_dim]` of probabilities `[n_heads, n, keys]` and values.

    Args:
        probs: exact ones: exp(score - m) is a probability divided by the one at the maximum m.
        values: `[n_heads, keys, head_dim]`, as the kernel reads them.
        step: keys at a time.
        weights: what exp(score - m) is rounded to.
        sums: what the running sum of values is kept in.
    """
    total = np.zeros((*probs.shape[:-1], values.shape[-1]))
    largest = np.zeros((*probs.shape[:-1], 1))
    for start in range(0, probs.shape[-1], step):
        part = probs[..., start : start + step]
        before, largest = largest, np.maximum(largest, part.max(axis=-1, keepdims=True))
        shown = np.where(largest > 0, largest, 1.0)  # where no key was visible yet, all are 0
        total = rounded(total * (before / shown), sums)
        total = rounded(total + rounded(part / shown, weights) @ values[..., start : start + step, :], sums)
    return total * largest  # the sum of all w is 1 / the largest probability
