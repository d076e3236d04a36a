"""Which experts compute a token, and how what they make is added, in numpy float64.

Jiang et al. 2024 (Mixtral), https://arxiv.org/abs/2401.04088, section 2.1: a softmax over the chosen
experts' scores alone. That is the softmax over all experts, divided by its sum over the chosen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.oracle.c00_products import Array

__all__ = ["routed", "weighted_sum", "weights_of"]


def routed(router: Array, n_used: int) -> tuple[NDArray[np.int64], Array]:
    """The experts of each token by its scores `[n, n_experts]`, the likeliest first, and their weights.

    Both `[n, n_used]`; of equal scores the lower number comes first.
    """
    chosen = np.argsort(-router, axis=1, kind="stable")[:, :n_used].astype(np.int64)
    return chosen, weights_of(router, chosen)


def weights_of(router: Array, chosen: NDArray[np.int64]) -> Array:
    """What the chosen experts `[n, n_used]` count for: a softmax over their scores alone."""
    scores = np.take_along_axis(router, chosen, axis=1)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def weighted_sum(out: Array, weights: Array) -> Array:
    """`[n, n_used, width]`, each times its weight, added: `[n, width]`."""
    return np.asarray(np.einsum("nk,nkw->nw", weights, out))
