"""The KV cache: rotated keys and values of the tokens seen so far, in tensors of fixed size.

A *slot* is where a token is written; its *position* is what RoPE turned it by and what the mask
compares. They are two things: position 4,000 of a new sequence goes into slot 0, as in llama.cpp.
Slots, lengths and positions are device tensors and nothing is read back, so a step that uses the
cache can be captured in a CUDA graph.

    cache = KVCache.allocate(config, capacity=512, device="cpu", dtype=torch.float32)
    cache.reserve(positions)              # once a forward pass, before the first layer
    block(x, weights, config=config, positions=positions, cache=cache.layer(0))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llama_ckpt.errors import ContextLengthError, OptionError
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["KVCache", "LayerCache"]

EMPTY = -1  # the position of a slot that nothing was written to


@dataclass
class LayerCache:
    """One layer's keys and values, and the slots that the pass in progress writes to.

    Attributes:
        k: `[n_sequences, capacity, n_kv_heads, head_dim]`, after RoPE.
        v: the same shape.
        positions: `[n_sequences, capacity]` int64, `EMPTY` where no token is; shared by all layers.
        slots: `[n]` int64, indices into `n_sequences * capacity`, one for each token of the pass.
        own: whatever a layer that brings its own cache keeps from call to call; None at first, and again
            once the cache is cleared.
    """

    k: Tensor
    v: Tensor
    positions: Tensor
    slots: Tensor
    own: Any = None

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write `k`, `v` `[n, n_kv_heads, head_dim]` into this pass's slots; return all keys and values.

        Returns:
            keys and values `[n_sequences * capacity, n_kv_heads, head_dim]`, unwritten slots zero.
        """
        keys, values = self.k.flatten(0, 1), self.v.flatten(0, 1)
        keys.index_copy_(0, self.slots, k.to(keys.dtype))
        values.index_copy_(0, self.slots, v.to(values.dtype))
        return keys, values

    def visible(self, positions: Tensor, sequence_ids: Tensor | None) -> Tensor:
        """`[n, n_sequences * capacity]`: True where a token may look at a slot.

        The slot holds a token, of the same sequence, whose position is not later.
        """
        n_sequences, capacity = self.positions.shape
        held = self.positions.flatten()
        seen = (held >= 0) & (held <= positions[:, None])
        if n_sequences == 1:
            return seen
        owner = torch.arange(n_sequences, device=held.device).repeat_interleave(capacity)
        own = torch.zeros_like(positions) if sequence_ids is None else sequence_ids
        return seen & (owner == own[:, None])


@dataclass
class KVCache:
    """All layers' keys and values.

    Attributes:
        k, v: `[n_layers, n_sequences, capacity, n_kv_heads, head_dim]`.
        positions: `[n_sequences, capacity]` int64, `EMPTY` where no token is.
        lengths: `[n_sequences]` int64, slots in use; on the device.
        used: tokens reserved so far over all sequences, counted on the host.
    """

    k: Tensor
    v: Tensor
    positions: Tensor
    lengths: Tensor
    slots: Tensor
    used: int = 0
    _layers: dict[int, LayerCache] = field(default_factory=dict)

    @classmethod
    def allocate(
        cls,
        config: LlamaConfig,
        capacity: int,
        *,
        n_sequences: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        """An empty cache for `capacity` tokens in each of `n_sequences`.

        Raises:
            OptionError: a capacity or a number of sequences below one.
        """
        if capacity < 1 or n_sequences < 1:
            raise OptionError(
                "size of the KV cache", got=f"{n_sequences} x {capacity}", wanted="at least 1 x 1"
            )
        shape = (config.n_layers, n_sequences, capacity, config.n_kv_heads, config.head_dim)
        return cls(
            # Zeros, not empty: a masked slot has probability 0, and 0 times a stray NaN would be NaN.
            k=torch.zeros(shape, device=device, dtype=dtype),
            v=torch.zeros(shape, device=device, dtype=dtype),
            positions=torch.full((n_sequences, capacity), EMPTY, device=device, dtype=torch.int64),
            lengths=torch.zeros(n_sequences, device=device, dtype=torch.int64),
            slots=torch.zeros(0, device=device, dtype=torch.int64),
        )

    @property
    def capacity(self) -> int:
        """Slots in each sequence."""
        return self.positions.shape[1]

    def reserve(self, positions: Tensor, sequence_ids: Tensor | None = None) -> None:
        """Give each of the pass's tokens the next free slot of its sequence and note its position.

        Args:
            positions: `[n]` int64.
            sequence_ids: `[n]` int64; None puts every token into sequence 0.

        Raises:
            ContextLengthError: without `sequence_ids`, more tokens than free slots. With them only
                the device knows the lengths, and a slot that is not there is an indexing error.
        """
        n = positions.shape[0]
        if sequence_ids is None and self.used + n > self.capacity:
            raise ContextLengthError(
                "tokens in the KV cache", got=self.used + n, wanted=f"at most {self.capacity}",
                hint="allocate a larger cache or shorten the prompt",
            )  # fmt: skip
        own = torch.zeros_like(positions) if sequence_ids is None else sequence_ids
        earlier = (own[:, None] == own).tril(-1).sum(1) if sequence_ids is not None else torch.arange(
            n, device=positions.device
        )  # fmt: skip
        free = self.lengths[own] + earlier
        nowhere = self.positions.numel()  # writing there is the error; free itself may be a neighbour's slot
        self.slots = torch.where(free < self.capacity, own * self.capacity + free, nowhere)
        self.positions.view(-1).index_copy_(0, self.slots, positions)
        self.lengths.index_add_(0, own, torch.ones_like(own))
        self.used += n

    def layer(self, number: int) -> LayerCache:
        """The view of one layer for the pass that `reserve` began; writing to it writes here."""
        if number not in self._layers:
            self._layers[number] = LayerCache(self.k[number], self.v[number], self.positions, self.slots)
        self._layers[number].slots = self.slots
        return self._layers[number]

    def remove(self, first: int, sequence: int = 0) -> None:
        """Forget a sequence's tokens at position `first` and after it: what comes next takes their slots.

        What a layer keeps in `own` is left to it: it sees positions that it has already come again.
        """
        held = self.positions[sequence]
        gone = held >= first
        count = int(gone.sum())
        held.masked_fill_(gone, EMPTY)
        self.lengths[sequence] -= count
        self.used -= count

    def clear(self) -> None:
        """Forget every token, in place; keys and values stay but no mask reaches them."""
        self.positions.fill_(EMPTY)
        self.lengths.zero_()
        self.used = 0
        self._layers.clear()
