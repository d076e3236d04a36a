"""Products of a few rows with weights as they lie in the file, on the CPU: for generating token by token.

A token reads every weight once. Packed, they are a quarter or an eighth of what float32 copies are, so a
product that unpacks them in a processor's registers (`packed_rows.c`) is bound by less memory. Sums are in
float32, activations are not rounded; each row of a weight is summed in one order, so that the bits are the
same from run to run and for any number of threads. For more rows a weight becomes float32 once for all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from torch import Tensor

from llama_ckpt.spare_memory import spare_bytes
from llama_ckpt.weights.decoding import PIECE, decode_into
from llama_ckpt.weights.native_code import native_code
from llama_ckpt.weights.quants import PackedWeight, Weight, dequantize
from llama_ckpt.weights.records import BlockWeights, ModelWeights

__all__ = [
    "FEW_ROWS",
    "NATIVE_TYPES",
    "FewRowsWeight",
    "all_compiled",
    "packed_product",
    "weights_for_few_rows",
]

NATIVE_TYPES: Final[Mapping[T, str]] = MappingProxyType(
    {T.Q8_0: "q8_0", T.Q4_0: "q4_0", T.Q4_K: "q4_k", T.Q6_K: "q6_k"}
)
"""Block formats that `packed_rows.c` reads, and its function for each."""

FEW_ROWS: Final = 16
"""Up to so many rows weights are unpacked in registers; for more it pays to unpack them once for all."""

LEAST_PART: Final = 1 << 20
"""Elements of a weight that are worth a thread."""

_Function = Callable[..., None]


@cache
def _functions() -> Mapping[T, _Function]:
    """What was compiled, by type, each of which gave the right products; empty without a compiler."""
    library = native_code()
    if library is None:
        return {}
    found = {}
    for type, name in NATIVE_TYPES.items():
        function = getattr(library, name)
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        function.argtypes = [pointer, number, number, number, pointer, number, pointer, number]
        function.restype = None
        if _is_right(function, type):
            found[type] = function
    return found


def _is_right(function: _Function, type: T) -> bool:
    """Whether some products are those of the values that `dequantize` gives, within float32's roundings."""
    block, block_bytes = GGML_QUANT_SIZES[type]
    draw = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 256, (9, 3 * block_bytes), dtype=torch.uint8, generator=draw)
    words = raw.view(-1, block_bytes)
    for at in _SCALES[type]:
        words[:, at + 1] = words[:, at + 1] & 0x83 | 0x28  # float16 from 2^-5 on, of both signs
    x = torch.randn(7, 3 * block, generator=draw)
    w = dequantize(raw, type, (9, 3 * block)).double()
    y = torch.empty(7, 9)
    _run(function, raw, x, y, 0, 9)
    terms = (x.double().abs() @ w.abs().t()).clamp_min(1e-30)
    return bool(((y.double() - x.double() @ w.t()).abs() / terms).max() < 1e-6)


_SCALES: Final = {T.Q8_0: (0,), T.Q4_0: (0,), T.Q4_K: (0, 2), T.Q6_K: (208,)}
"""Where a block's float16 numbers begin."""


def _run(function: _Function, raw: Tensor, x: Tensor, y: Tensor, first: int, last: int) -> None:
    function(raw.data_ptr(), first, last, x.shape[1], x.data_ptr(), len(x), y.data_ptr(), y.shape[1])


def packed_product(raw: Tensor, type: T, x: Tensor) -> Tensor:
    """x · wᵀ in float32: `x [n, in]`, a weight's bytes `[out, row_bytes]`, both contiguous -> `[n, out]`.

    Raises:
        KeyError: a type that no compiled function reads here.
    """
    function, out = _functions()[type], len(raw)
    y = torch.empty(len(x), out)
    parts = max(1, min(torch.get_num_threads(), out * x.shape[1] // LEAST_PART))
    if parts == 1:
        _run(function, raw, x, y, 0, out)
        return y
    ends = [out * part // parts for part in range(parts + 1)]
    tasks = [_pool().submit(_run, function, raw, x, y, *ends[i : i + 2]) for i in range(1, parts)]
    _run(function, raw, x, y, *ends[:2])
    for task in tasks:
        task.result()
    return y


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="packed-products")


def product_in_pieces(raw: Tensor, type: T, x: Tensor) -> Tensor:
    """The same for many rows: some rows of the weight at a time become float32, in one place for all."""
    out, width = len(raw), x.shape[1]
    y, step = torch.empty(len(x), out), max(1, 4 * PIECE // width)
    place = torch.empty(min(step, out), width)
    for start in range(0, out, step):
        some = raw[start : start + step]
        values = place[: len(some)]
        decode_into(some, type, values)
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
    functions = _functions()
    left = [w for w in _packed(weights) if w.type not in functions]
    missing = sorted({w.type.name for w in left})
    copies = 4 * sum(w.shape[0] * w.shape[1] for w in left) <= spare_bytes() // 2
    made: dict[int, Weight] = {}

    def matrix(w: Weight) -> Weight:
        if not isinstance(w, PackedWeight):
            return w
        if id(w) not in made:  # a tied output stays the object that the embedding is
            few = FewRowsWeight(w.raw.contiguous(), w.type, w.shape) if w.type in functions else w
            made[id(w)] = w.dequantize() if few is w and copies else few
        return made[id(w)]

    found = ModelWeights(
        weights.token_embd if weights.output is not weights.token_embd else matrix(weights.token_embd),
        tuple(_with(block, matrix) for block in weights.blocks),
        weights.output_norm,
        matrix(weights.output),
    )
    if not missing:
        return found, "with packed weights"
    return (
        found,
        f"with {'float32 copies' if copies else 'weights unpacked for each token'} of {', '.join(missing)}",
    )


def all_compiled(weights: ModelWeights) -> bool:
    """Whether each matrix is of a type that a compiled function reads, or lies unpacked in the file."""
    functions = _functions()
    return all(w.type in functions for w in _packed(weights))


def _packed(weights: ModelWeights) -> Iterator[PackedWeight]:
    """Every packed matrix that a token is multiplied with."""
    records: tuple[Any, ...] = (*weights.blocks, weights)
    for record in records:
        names = [one.name for one in fields(record) if one.name != "token_embd"]
        yield from (w for name in names if isinstance(w := getattr(record, name), PackedWeight))


def _with(block: BlockWeights, matrix: Callable[[Weight], Weight]) -> BlockWeights:
    packed = {one.name: getattr(block, one.name) for one in fields(block)}
    made: dict[str, Any] = {k: matrix(w) for k, w in packed.items() if isinstance(w, PackedWeight)}
    return replace(block, **made)
