"""Products of a few rows with weights as they lie in the file, on the CPU: for generating token by token.

A token reads every weight once. Packed, they are a quarter or an eighth of what float32 copies are, so a
product that unpacks them in a processor's registers (`packed_rows.c`) is bound by less memory. Sums are in
float32, activations are not rounded; each row of a weight is summed in one order, so that the bits are the
same from run to run and for any number of threads. For more rows a weight becomes float32 once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, Final, TypeGuard

import torch
from gguf import GGMLQuantizationType as T
from torch import Tensor

from llama_ckpt.spare_memory import spare_bytes
from llama_ckpt.weights.compiled_formats import compiled_formats, in_parts
from llama_ckpt.weights.decoding import PIECE
from llama_ckpt.weights.quants import PackedWeight, Weight
from llama_ckpt.weights.records import BlockWeights, ModelWeights

__all__ = [
    "FEW_ROWS",
    "FewRowsWeight",
    "all_compiled",
    "packed_product",
    "weights_for_few_rows",
]

FEW_ROWS: Final = 16
"""Up to so many rows weights are unpacked in registers; for more it pays to unpack them once for all."""


def packed_product(raw: Tensor, type: T, x: Tensor) -> Tensor:
    """x · wᵀ in float32: `x [n, in]`, a weight's bytes `[out, row_bytes]`, both contiguous -> `[n, out]`.

    Raises:
        KeyError: a type that no compiled function reads here.
    """
    rows, out = compiled_formats()[type].rows, len(raw)
    y = torch.empty(len(x), out)

    def part(first: int, last: int) -> None:
        rows(raw.data_ptr(), first, last, x.shape[1], x.data_ptr(), len(x), y.data_ptr(), out)

    in_parts(part, out, out * x.shape[1])
    return y


def product_in_pieces(raw: Tensor, type: T, x: Tensor) -> Tensor:
    """The same for many rows: some rows of the weight at a time become float32, in one place for all."""
    compiled, out, width = compiled_formats()[type], len(raw), x.shape[1]
    y, step = torch.empty(len(x), out), max(1, 4 * PIECE // width)
    place = torch.empty(min(step, out), width)
    for start in range(0, out, step):
        some = raw[start : start + step]
        values = place[: len(some)]
        compiled.write_values(some, values)
        torch.mm(x, values.t(), out=y[:, start : start + len(some)])
    return y


class FewRowsWeight(PackedWeight):
    """A packed weight on the CPU whose products in float32 never need all of it unpacked."""

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """As of `PackedWeight`."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        if not len(rows) or x.dtype != torch.float32:
            return super().times(x, bias)
        product = packed_product if len(rows) <= FEW_ROWS else product_in_pieces
        y = product(self.raw, self.type, rows)
        return (y if bias is None else y + bias).reshape(*x.shape[:-1], -1)


def weights_for_few_rows(weights: ModelWeights) -> tuple[ModelWeights, str]:
    """The same weights for a pass a token on the CPU in float32, and how their products are made, a clause.

    Where types lack a compiled function, half of the free memory may be taken for float32 copies of theirs.
    """
    left = [w for w in _narrow(weights) if not _compiled(w)]
    missing = sorted({_type(w).name for w in left})
    copies = 4 * sum(w.shape[0] * w.shape[1] for w in left) <= spare_bytes() // 2
    made: dict[int, Weight] = {}

    def matrix(w: Weight) -> Weight:
        if id(w) not in made:  # a tied output stays the object that the embedding is
            made[id(w)] = _for_few_rows(w) if _compiled(w) else _wide(w) if copies else w
        return made[id(w)]

    found = ModelWeights(
        weights.token_embd if weights.output is not weights.token_embd else _with_few(weights.output, matrix),
        tuple(_with(block, matrix) for block in weights.blocks),
        weights.output_norm,
        _with_few(weights.output, matrix),
    )
    if not missing:
        return found, "with packed weights"
    return (
        found,
        f"with {'float32 copies' if copies else 'weights unpacked for each token'} of {', '.join(missing)}",
    )


def all_compiled(weights: ModelWeights) -> bool:
    """Whether each matrix is of a type that a compiled function reads, or lies in float32 in the file."""
    return all(map(_compiled, _narrow(weights)))


_HALF: Final = {torch.float16: T.F16, torch.bfloat16: T.BF16}


def _is_narrow(w: object) -> TypeGuard[Weight]:
    """Whether it is a matrix whose numbers take fewer bytes than float32."""
    return isinstance(w, PackedWeight) or (isinstance(w, Tensor) and w.dim() == 2 and w.dtype in _HALF)


def _type(w: Weight) -> T:
    return w.type if isinstance(w, PackedWeight) else _HALF[w.dtype]


def _compiled(w: Weight) -> bool:
    compiled = compiled_formats().get(_type(w))
    return compiled is not None and w.shape[1] % compiled.block == 0


def _for_few_rows(w: Weight) -> FewRowsWeight:
    raw = w.raw if isinstance(w, PackedWeight) else w.contiguous().view(torch.uint8)
    return FewRowsWeight(raw.contiguous(), _type(w), (w.shape[0], w.shape[1]))


def _wide(w: Weight) -> Tensor:
    return w.dequantize() if isinstance(w, PackedWeight) else w.float()


def _narrow(weights: ModelWeights) -> Iterator[Weight]:
    """Every matrix that a token is multiplied with and that is not in float32."""
    records: tuple[Any, ...] = (*weights.blocks, weights)
    for record in records:
        names = [one.name for one in fields(record) if one.name != "token_embd"]
        yield from filter(_is_narrow, (getattr(record, name) for name in names))


def _with_few(w: Weight, matrix: Callable[[Weight], Weight]) -> Weight:
    return matrix(w) if _is_narrow(w) else w


def _with(block: BlockWeights, matrix: Callable[[Weight], Weight]) -> BlockWeights:
    there = {one.name: getattr(block, one.name) for one in fields(block)}
    made: dict[str, Any] = {name: matrix(w) for name, w in there.items() if _is_narrow(w)}
    return replace(block, **made)
