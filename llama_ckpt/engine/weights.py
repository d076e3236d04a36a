"""A model's weights as the engine uses them: packed planes for steps, dense float16 for long prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from llama_ckpt.engine.products import Dense, values
from llama_ckpt.kernels.planes import Pack, Planes, interleaved, repack, stacked
from llama_ckpt.weights.quants import PackedWeight, Weight
from llama_ckpt.weights.records import BlockWeights, ModelWeights

__all__ = ["EngineBlock", "EngineWeights"]


@dataclass(frozen=True, eq=False)
class EngineBlock:
    """One block's weights.

    Attributes:
        attn_norm, ffn_norm: float32 [width].
        qkv: q, k and v under one another, in segments of one file type, each with its first row.
        wo, down: planes.
        gate_up: rows of gate and up in turn.
    """

    attn_norm: Tensor
    qkv: tuple[tuple[int, Planes], ...]
    wo: Planes
    ffn_norm: Tensor
    gate_up: Planes
    down: Planes


class EngineWeights:
    """All weights, repacked at construction; dense ones when a long prompt first asks for them.

    Args:
        weights: of the model, on the GPU.
        exact: whether dense weights keep what float16 cannot hold.
    """

    def __init__(self, weights: ModelWeights, *, exact: bool) -> None:
        self._weights, self._exact = weights, exact
        self.blocks = tuple(_block(w) for w in weights.blocks)
        self.output_norm = weights.output_norm
        self.output = repack(weights.output)
        embedding = weights.token_embd
        self.embedding = embedding.dequantize() if isinstance(embedding, PackedWeight) else embedding

    @cached_property
    def dense(self) -> tuple[tuple[Dense, Dense, Dense, Dense], ...]:
        """For each block qkv, wo, gate_up and down for the tensor cores; kept once made."""
        return tuple(
            (
                self._dense(tuple(p for _, p in block.qkv), (w.wq, w.wk, w.wv)),
                self._dense((block.wo,), (w.wo,)),
                self._dense((block.gate_up,), (_in_turn(w.w_gate, w.w_up),)),
                self._dense((block.down,), (w.w_down,)),
            )
            for block, w in zip(self.blocks, self._weights.blocks, strict=True)
        )

    @cached_property
    def dense_output(self) -> Dense:
        """The output head for the tensor cores."""
        return self._dense((self.output,), (self._weights.output,))

    def _dense(self, planes: tuple[Planes, ...], weights: tuple[Weight, ...]) -> Dense:
        if len(planes) == 1 and planes[0].layout.pack == Pack.FLOAT16:  # planes of float16 are the rows
            rows, _ = planes[0].shape
            return Dense(planes[0].q.view(torch.float16)[:rows])
        return Dense.of(weights, exact=self._exact)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one step reads; the embedding table is not among them."""
        return self.output.nbytes + sum(p.nbytes for b in self.blocks for p in _all_planes(b))


def _all_planes(block: EngineBlock) -> Iterator[Planes]:
    yield from (planes for _, planes in block.qkv)
    yield from (block.wo, block.gate_up, block.down)


def _block(w: BlockWeights) -> EngineBlock:
    return EngineBlock(
        attn_norm=w.attn_norm,
        qkv=tuple(_segments((w.wq, w.wk, w.wv))),
        wo=repack(w.wo),
        ffn_norm=w.ffn_norm,
        gate_up=repack(_in_turn(w.w_gate, w.w_up)),
        down=repack(w.w_down),
    )


def _segments(weights: tuple[Weight, ...]) -> Iterator[tuple[int, Planes]]:
    """Neighbours of one file type together, with the row that each segment begins at."""
    first, start = 0, 0
    for end in range(1, len(weights) + 1):
        if end == len(weights) or _kind(weights[end - 1]) != _kind(weights[end]):
            together = _under_one_another(weights[start:end])
            assert together is not None
            yield first, repack(together)
            first, start = first + together.shape[0], end


def _under_one_another(weights: tuple[Weight, ...]) -> Weight | None:
    """Matrices of one type as one: the memory they share, where loading put them so, else a copy."""
    bytes_of = [_memory(w) for w in weights]
    first, rows = bytes_of[0], sum(w.shape[0] for w in weights)
    ends = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in bytes_of]
    touching = all(end == begin for (_, end), (begin, _) in pairwise(ends))
    if not touching or not all(_same_memory(first, t) and t.is_contiguous() for t in bytes_of):
        return stacked(weights)
    return _like(weights[0], first.as_strided((rows, first.shape[1]), first.stride()))


def _in_turn(gate: Weight, up: Weight) -> Weight:
    """Rows of gate and up in turn; where the file gives them different types, in float32."""
    if _kind(gate) != _kind(up):
        gate, up = values(gate, torch.float32), values(up, torch.float32)
    first, second = _memory(gate), _memory(up)
    rows, width = first.shape
    if _same_memory(first, second) and first.stride() == second.stride() == (2 * width, 1):
        if second.storage_offset() == first.storage_offset() + width:
            return _like(gate, first.as_strided((2 * rows, width), (width, 1)))
    both = interleaved(gate, up)
    assert both is not None
    return both


def _kind(w: Weight) -> object:
    return w.dtype if isinstance(w, Tensor) else w.type


def _memory(w: Weight) -> Tensor:
    return w if isinstance(w, Tensor) else w.raw


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _like(w: Weight, memory: Tensor) -> Weight:
    """More rows of a weight's type."""
    return memory if isinstance(w, Tensor) else PackedWeight(memory, w.type, (memory.shape[0], w.shape[1]))
