"""A model's weights as the engine uses them: packed planes for steps, dense float16 for long prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from llama_ckpt.kernels.planes import Pack, Planes, interleaved, repack, stacked
from llama_ckpt.quants import PackedWeight, Weight
from llama_ckpt.weights import BlockWeights, ModelWeights

__all__ = ["LOW_PART", "Dense", "EngineBlock", "EngineWeights"]

LOW_PART = 2048.0
"""What the rest of a float16 rounding is multiplied by, so that it does not fall below float16's range."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A weight for the tensor cores: high + low / 2048.

    Attributes:
        high: float16 [rows, width].
        low: the same shape; None where `high` is exact, or is all that is wanted.
    """

    high: Tensor
    low: Tensor | None

    @classmethod
    def of(cls, weights: tuple[Weight, ...], *, exact: bool) -> Dense:
        """Matrices under one another; with `exact`, to 22 bits."""
        if exact and not all(isinstance(w, Tensor) and w.dtype == torch.float16 for w in weights):
            values = torch.cat([_values(w, torch.float32) for w in weights])
            high = values.half()
            return cls(high, ((values - high) * LOW_PART).half())
        parts = [_values(w, torch.float16) for w in weights]
        return cls(parts[0] if len(parts) == 1 else torch.cat(parts), None)


def _values(w: Weight, dtype: torch.dtype) -> Tensor:
    return w.dequantize(dtype) if isinstance(w, PackedWeight) else w.to(dtype)


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
        exact: whether dense weights keep 22 bits.
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
            return Dense(planes[0].q.view(torch.float16)[:rows], None)
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
        if end == len(weights) or stacked((weights[end - 1], weights[end])) is None:
            together = stacked(weights[start:end])
            assert together is not None
            yield first, repack(together)
            first, start = first + together.shape[0], end


def _in_turn(gate: Weight, up: Weight) -> Weight:
    """Rows of gate and up in turn; where the file gives them different types, in float32."""
    both = interleaved(gate, up)
    if both is None:
        both = interleaved(_values(gate, torch.float32), _values(up, torch.float32))
    assert both is not None
    return both
