"""A large model's weights in float32 on the CPU: made when they are used, for everybody who uses them then.

    shared = unpacked_by_block(model.weights)
    shared.blocks[3].wq           # the values that the layers and the oracle multiply with, one copy

Where half of the free memory holds all blocks they stay; else the last one alone does, and whoever goes
through a model goes through it block by block. `blocks.arrive` is told each block that is asked for before it
is made: so several that go through a model can wait for one another (`ladder.lockstep`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import overload

import torch
from torch import Tensor

from llama_ckpt.spare_memory import spare_bytes
from llama_ckpt.weights.quants import PackedWeight, Weight
from llama_ckpt.weights.records import BlockWeights, ModelWeights
from llama_ckpt.weights.tensor_names import BIAS_TENSORS

__all__ = ["UnpackedBlocks", "unpacked_by_block"]

_VECTORS = frozenset({"attn_norm", "ffn_norm", *BIAS_TENSORS})


class UnpackedBlocks(Sequence[BlockWeights]):
    """A model's blocks, every matrix a float32 tensor.

    Args:
        packed: as they lie in the file. most: bytes that all of them may take to be kept.

    Attributes:
        packed: the same. keeps_all: whether they stay. arrive: called with a block's number, see above.
    """

    def __init__(self, packed: Sequence[BlockWeights], most: int) -> None:
        self.packed = packed
        self.keeps_all = sum(map(_bytes, packed)) <= most
        self.arrive: Callable[[int], object] = lambda number: None
        self._made: dict[int, BlockWeights] = {}
        self._making = threading.Lock()  # several may ask for a block at once

    def __len__(self) -> int:
        return len(self.packed)

    @overload
    def __getitem__(self, index: int) -> BlockWeights: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[BlockWeights]: ...

    def __getitem__(self, index: int | slice) -> BlockWeights | Sequence[BlockWeights]:
        numbers = range(len(self))[index]
        return [self._block(one) for one in numbers] if isinstance(numbers, range) else self._block(numbers)

    def __iter__(self) -> Iterator[BlockWeights]:
        return (self._block(number) for number in range(len(self)))

    def _block(self, number: int) -> BlockWeights:
        self.arrive(number)
        with self._making:
            if number not in self._made:
                if not self.keeps_all:
                    self._made.clear()  # before the next is made: a block of 7B takes 0.8 GB
                self._made[number] = self._make(self.packed[number])
            return self._made[number]

    def _make(self, packed: BlockWeights) -> BlockWeights:
        there = [one.name for one in fields(packed) if getattr(packed, one.name) is not None]
        matrices = {name: _float32(getattr(packed, name)) for name in there if name not in _VECTORS}
        return replace(packed, **matrices)


def unpacked_by_block(packed: ModelWeights, most: int | None = None) -> ModelWeights:
    """The same weights in float32, the very values that `linear` makes of them.

    Args:
        packed: on the CPU.
        most: bytes that the blocks may take to be kept; None: half of the memory that is free.
    """
    head = _float32(packed.output)
    # Of an embedding only rows are read.
    embedding = head if packed.output is packed.token_embd else packed.token_embd
    blocks = UnpackedBlocks(packed.blocks, spare_bytes() // 2 if most is None else most)
    return ModelWeights(embedding, blocks, packed.output_norm, head)


def _float32(weight: Weight) -> Tensor:
    return weight.dequantize(torch.float32) if isinstance(weight, PackedWeight) else weight.float()


def _bytes(block: BlockWeights) -> int:
    there = (getattr(block, one.name) for one in fields(block) if one.name not in _VECTORS)
    return sum(4 * weight.shape[0] * weight.shape[1] for weight in there if weight is not None)
