"""Weights in the file's own type: dequantized where they lie, when they are used.

A weight is a plain torch tensor (float32, float16, bfloat16) or a `PackedWeight`: the file's blocks
and their type. Every product with a weight goes through `linear`, every look-up through
`embedding_rows`, and neither cares which of the two it is given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor
from torch.nn import functional

from llama_ckpt.errors import ShapeError, UnsupportedModelError
from llama_ckpt.weights.block_formats import PLAIN_DTYPES
from llama_ckpt.weights.codebook_formats import codebook
from llama_ckpt.weights.decoders import BLOCK_DECODERS
from llama_ckpt.weights.decoding import decode_into, pays

__all__ = ["PackedWeight", "Weight", "dequantize", "embedding_rows", "exact_matmul", "linear", "weight_rows"]


def dequantize(
    raw: Tensor, type: GGMLQuantizationType, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """The values of a tensor's bytes, on the device where the bytes lie.

    Args:
        raw: uint8 [..., row_bytes], the rows as in the file.
        type: their block format.
        shape: of the result, row-major.
        dtype: of the result. Values are computed in float32, bit-identical to
            `gguf.quants.dequantize`, and then rounded once.

    Raises:
        ShapeError: `raw` is not uint8, or does not hold as many elements as `shape`.
        UnsupportedModelError: a type that is not supported.
    """
    if raw.dtype != torch.uint8:
        raise ShapeError("the bytes of a weight", got=raw.dtype, wanted=torch.uint8)
    _check_type(type)
    block, block_bytes = GGML_QUANT_SIZES[type]
    n_elements = raw.numel() // block_bytes * block
    if raw.numel() % block_bytes or n_elements != torch.Size(shape).numel():
        raise ShapeError(
            f"bytes of a {type.name} weight", got=raw.numel(), wanted=f"those of {list(shape)} elements"
        )
    if not n_elements:
        return torch.empty(shape, dtype=dtype, device=raw.device)
    if type in PLAIN_DTYPES:
        return _plain(raw, PLAIN_DTYPES[type]).reshape(shape).to(dtype)
    if pays(raw, type):
        out = torch.empty(shape, dtype=dtype)
        decode_into(raw.contiguous(), type, out)
        return out
    return BLOCK_DECODERS[type](raw.reshape(-1, block_bytes)).reshape(shape).to(dtype)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight matrix as the file holds it.

    Attributes:
        raw: uint8 [out, row_bytes], on any device.
        type: the block format of a row.
        shape: (out, in).

    Raises:
        ShapeError: the bytes do not hold such a matrix.
        UnsupportedModelError: a type that is not supported.
    """

    raw: Tensor
    type: GGMLQuantizationType
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        _check_type(self.type)
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        out, width = self.shape
        wanted = (out, width // block * block_bytes)
        if self.raw.dtype != torch.uint8 or tuple(self.raw.shape) != wanted or width % block:
            raise ShapeError(
                f"the bytes of a {self.type.name} weight {list(self.shape)}",
                got=f"{self.raw.dtype} {list(self.raw.shape)}",
                wanted=f"torch.uint8 {list(wanted)}",
            )
        codebook(self.type, self.raw.device)  # on the device before a CUDA graph is captured there

    @property
    def device(self) -> torch.device:
        """Where the bytes lie."""
        return self.raw.device

    @property
    def nbytes(self) -> int:
        """Bytes that the weight takes on its device."""
        return self.raw.numel()

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        return PackedWeight(self.raw.to(device), self.type, self.shape)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, [out, in] in `dtype`, on the weight's device."""
        return dequantize(self.raw, self.type, self.shape, dtype)

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x · wᵀ + bias, see `linear`; the bias in the dtype of x."""
        return functional.linear(x, self.dequantize(x.dtype), bias)

    def rows(self, token_ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Some rows, [..., in] for ids [...]; only those are dequantized."""
        rows = self.raw.index_select(0, token_ids.reshape(-1))
        return dequantize(rows, self.type, (*token_ids.shape, self.shape[1]), dtype)


Weight = Tensor | PackedWeight
"""A weight matrix [out, in]: a tensor, or the file's blocks."""


def linear(x: Tensor, w: Weight, bias: Tensor | None = None) -> Tensor:
    """x · wᵀ + bias: [..., in] and a weight [out, in] → [..., out], in the dtype and on the device of x.

    The weight, and the bias [out] where there is one, are brought to the dtype of x first. Stands on
    `torch.nn.functional.linear`.
    """
    own_bias = None if bias is None else bias.to(x.dtype)
    if isinstance(w, PackedWeight):
        return w.times(x, own_bias)
    return functional.linear(x, w.to(x.dtype), own_bias)


def weight_rows(w: Weight, number: int, n: int) -> Weight:
    """Part `number` of a weight of n parts of equally many rows: a view, nothing is dequantized."""
    size = w.shape[0] // n
    rows = slice(number * size, (number + 1) * size)
    return replace(w, raw=w.raw[rows], shape=(size, w.shape[1])) if isinstance(w, PackedWeight) else w[rows]


def embedding_rows(token_ids: Tensor, w: Weight, dtype: torch.dtype) -> Tensor:
    """The rows of a weight [vocab, width] that belong to the ids [...]: [..., width] in `dtype`."""
    if isinstance(w, PackedWeight):
        return w.rows(token_ids, dtype)
    return functional.embedding(token_ids, w).to(dtype)


def _plain(raw: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers; copied only where torch could not look at them in place."""
    raw = raw.contiguous()
    return (raw if raw.storage_offset() % dtype.itemsize == 0 else raw.clone()).view(dtype)


def _check_type(type: GGMLQuantizationType) -> None:
    if type not in BLOCK_DECODERS and type not in PLAIN_DTYPES:
        raise UnsupportedModelError(
            "the type of a weight",
            got=type.name,
            wanted="one of " + ", ".join(sorted(kind.name for kind in (*PLAIN_DTYPES, *BLOCK_DECODERS))),
        )


_lock = threading.Lock()
_uses = 0
_restore: list[Callable[[], None]] = []


@contextmanager
def exact_matmul() -> Iterator[None]:
    """Within it, products of matrices are exact to their dtype; nothing is left to defaults.

    On CUDA: TF32 off, so that float32 means float32; for float16 and bfloat16 no reduction in reduced
    precision (split-K stays, its parts summed in float32: forbidding it is refused by plain cuBLAS),
    and no half-precision accumulation. On the CPU: no bfloat16
    inside float32 products. The settings are torch's own, of the whole process; they come back when
    the last of nested or concurrent uses ends. On a build of torch without CUDA they are set all the
    same, and change nothing. A CUDA graph keeps what held when it was captured.
    """
    global _uses
    with _lock:
        if _uses == 0:
            _restore.append(_make_exact())
        _uses += 1
    try:
        yield
    finally:
        with _lock:
            _uses -= 1
            if _uses == 0:
                _restore.pop()()


def _make_exact() -> Callable[[], None]:
    """State every setting, and return what brings the former ones back."""
    backends: Any = torch.backends
    cuda, cpu = backends.cuda.matmul, backends.mkldnn.matmul
    pairs = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before: list[tuple[Any, str, Any]] = [
        (module, "fp32_precision", module.fp32_precision) for module in (cuda, cpu)
    ]
    before += [(cuda, name, (getattr(cuda, name), getattr(cuda, f"{name}_split_k"))) for name in pairs]
    before += [(cuda, "allow_fp16_accumulation", cuda.allow_fp16_accumulation)]
    math_sdp = backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    try:
        overall = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch's answer when both its older and its newer interface were used
        overall = "highest"

    torch.set_float32_matmul_precision("highest")
    for module, name, value in before:
        exact = "ieee" if name == "fp32_precision" else (False, True) if isinstance(value, tuple) else False
        setattr(module, name, exact)
    backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)

    def restore() -> None:
        torch.set_float32_matmul_precision(overall)
        for module, name, value in before:
            setattr(module, name, value)
        backends.cuda.allow_fp16_bf16_reduction_math_sdp(math_sdp)

    return restore
