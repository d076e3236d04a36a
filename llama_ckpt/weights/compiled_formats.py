"""The block formats that `packed_rows.c` reads: where it was compiled, and gave what the decoders give.

A function is tried before it is used: on random blocks its values must have the decoders' bits, and its
products must be those of the values. What fails is as if it had not been compiled.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from torch import Tensor

from llama_ckpt.weights.block_formats import PLAIN_DTYPES
from llama_ckpt.weights.decoders import BLOCK_DECODERS
from llama_ckpt.weights.native_code import native_code

__all__ = [
    "LEAST_PART",
    "NATIVE_TYPES",
    "CompiledFormat",
    "compiled_formats",
    "in_parts",
    "threads_for_products_alone",
]

_HALVES: Final = tuple(range(0, 64, 2))

NATIVE_TYPES: Final[Mapping[T, tuple[int, ...]]] = MappingProxyType(
    {
        **{T.F16: _HALVES, T.BF16: _HALVES},
        **{T.Q8_0: (0,), T.Q4_0: (0,), T.Q4_1: (0, 2), T.Q5_0: (0,), T.Q5_1: (0, 2)},
        **{T.Q2_K: (80, 82), T.Q3_K: (108,), T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,)},
        **{T.IQ4_NL: (0,), T.IQ4_XS: (0,)},
    }
)
"""Formats that `packed_rows.c` reads, and where a block's numbers of two bytes begin."""

LEAST_PART: Final = 1 << 20
"""Elements of a weight that are worth a thread."""


@dataclass(frozen=True)
class CompiledFormat:
    """A format's two functions.

    Attributes:
        block, block_bytes: elements and bytes that they read at a time; of plain numbers 32 elements.
        values: called with the address of blocks, their number, and where to write float32.
        rows: called as `packed_products` does.
    """

    block: int
    block_bytes: int
    values: Callable[..., None]
    rows: Callable[..., None]

    def write_values(self, raw: Tensor, out: Tensor) -> None:
        """Values of contiguous whole blocks, uint8, into contiguous float32, on this machine's threads."""
        start, end, n_blocks = raw.data_ptr(), out.data_ptr(), raw.numel() // self.block_bytes

        def part(first: int, last: int) -> None:
            at = start + first * self.block_bytes, last - first, end + 4 * first * self.block
            self.values(*at)

        in_parts(part, n_blocks, out.numel())


_THREADS: Final[ContextVar[int]] = ContextVar("threads of products", default=0)


@contextmanager
def threads_for_products_alone() -> Iterator[None]:
    """Within it `in_parts` has torch's threads, and torch one: for passes of a token.

    What torch computes in such a pass is too small for two threads, and one that OpenMP has used goes on
    spinning for a moment, on the core that a product's own thread is then waiting for: TinyLlama's shape in
    Q4_0 took 0.16 s a token on two cores, on one 0.09.
    """
    threads = torch.get_num_threads()
    before = _THREADS.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _THREADS.reset(before)


def in_parts(function: Callable[[int, int], None], n: int, elements: int) -> None:
    """Call `function(first, last)` for ranges that make up 0 to n, on threads where that pays."""
    parts = max(1, min(_THREADS.get() or torch.get_num_threads(), elements // LEAST_PART))
    ends = [n * part // parts for part in range(parts + 1)]
    tasks = [_pool().submit(function, *ends[i : i + 2]) for i in range(1, parts)]
    function(*ends[:2])
    for task in tasks:
        task.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="packed-products")


@cache
def compiled_formats() -> Mapping[T, CompiledFormat]:
    """What was compiled and is right, by type; empty without a compiler."""
    library = native_code()
    if library is None:
        return {}
    found = {type: _functions(library, type) for type in NATIVE_TYPES}
    return {type: one for type, one in found.items() if is_right(one, type)}


def _functions(library: ctypes.CDLL, type: T) -> CompiledFormat:
    name, number, pointer = type.name.lower(), ctypes.c_int64, ctypes.c_void_p
    values, rows = getattr(library, f"{name}_values"), getattr(library, f"{name}_rows")
    values.argtypes = [pointer, number, pointer]
    rows.argtypes = [pointer, number, number, number, pointer, number, pointer, number]
    values.restype = rows.restype = None
    block, block_bytes = GGML_QUANT_SIZES[type]
    many = 32 if block == 1 else 1
    return CompiledFormat(many * block, many * block_bytes, values, rows)


def is_right(compiled: CompiledFormat, type: T) -> bool:
    """Whether values have the decoder's bits and products are theirs, within float32's roundings."""
    draw, block = torch.Generator().manual_seed(1), compiled.block
    raw = torch.randint(0, 256, (9, 3 * compiled.block_bytes), dtype=torch.uint8, generator=draw)
    words = raw.view(-1, compiled.block_bytes)
    for at in NATIVE_TYPES[type]:
        words[:, at + 1] = words[:, at + 1] & 0x83 | 0x28  # float16 from 2^-5 on, of both signs
    plain = PLAIN_DTYPES.get(type)
    w = (BLOCK_DECODERS[type](words) if plain is None else raw.view(plain).float()).view(9, 3 * block)
    found, x, y = torch.empty(9, 3 * block), torch.randn(7, 3 * block, generator=draw), torch.empty(7, 9)
    compiled.write_values(raw, found)
    compiled.rows(raw.data_ptr(), 0, 9, 3 * block, x.data_ptr(), 7, y.data_ptr(), 9)
    exact = x.double() @ w.double().t()
    terms = (x.double().abs() @ w.double().abs().t()).clamp_min(1e-30)
    return torch.equal(found, w) and bool(((y.double() - exact).abs() / terms).max() < 1e-6)
