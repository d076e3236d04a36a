"""Checkpoint 1B: RoPE.

Frequencies are handed over, so a wrong theta is a program that makes its own.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import PatchedOracle

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]


def half_split(
    right: PatchedOracle, q: Array, k: Array, positions: Array, frequencies: Array, tap: Any = None
) -> Any:
    """Pairs (i, i + d/2), as Hugging Face's weights are ordered."""
    d = np.asarray(q).shape[-1]
    order = np.arange(d).reshape(2, d // 2).T.ravel()  # 0, d/2, 1, d/2 + 1, …
    back = np.argsort(order)
    turned = right.rope(np.asarray(q)[..., order], np.asarray(k)[..., order], positions, frequencies)
    return tuple(x[..., back] for x in turned)


BUGS = (
    Bug("rope-half-split", "RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1)", "1B", "rope", half_split),
)
