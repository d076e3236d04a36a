"""One layer's cache as a layer written for numpy is handed it: the same slots, as arrays.

What it writes there stands in the tensors as well, and stays for the calls after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.weights.kv_cache import LayerCache

__all__ = ["ArrayCache"]

Array = NDArray[Any]


class ArrayCache:
    """A `LayerCache` of arrays.

    Attributes:
        k, v: `[n_sequences, capacity, n_kv_heads, head_dim]`, k after RoPE.
        positions: `[n_sequences, capacity]`, -1 where no token is.
        slots: `[n]`, where this call's tokens go, counted over all sequences.
    """

    def __init__(self, cache: LayerCache) -> None:
        self._cache = cache
        self.k, self.v, self.positions, self.slots = (
            x.numpy() for x in (cache.k, cache.v, cache.positions, cache.slots)
        )

    @property
    def own(self) -> Any:
        """Whatever a layer that brings its own cache keeps here from call to call; None at first."""
        return self._cache.own

    @own.setter
    def own(self, value: Any) -> None:
        self._cache.own = value

    def update(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Write this call's keys and values `[n, n_kv_heads, head_dim]`; all of them `[n_slots, …]`."""
        keys, values = (x.reshape(-1, *x.shape[2:]) for x in (self.k, self.v))
        keys[self.slots], values[self.slots] = k, v
        return keys, values

    def visible(self, positions: Array, sequence_ids: Array | None) -> NDArray[np.bool_]:
        """`[n, n_slots]`: True where a token may look at a slot."""
        at = torch.from_numpy(np.array(positions))
        own = None if sequence_ids is None else torch.from_numpy(np.array(sequence_ids))
        return np.asarray(self._cache.visible(at, own).numpy())
