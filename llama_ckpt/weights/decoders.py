"""Every block format that is read here, and the function that does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from gguf import GGMLQuantizationType as T
from torch import Tensor

from llama_ckpt.weights.block_formats import INTEGER_DECODERS
from llama_ckpt.weights.codebook_formats import CODEBOOK_DECODERS
from llama_ckpt.weights.small_formats import SMALL_DECODERS

__all__ = ["BLOCK_DECODERS"]

BLOCK_DECODERS: Final[Mapping[T, Callable[[Tensor], Tensor]]] = MappingProxyType(
    {**INTEGER_DECODERS, **CODEBOOK_DECODERS, **SMALL_DECODERS}
)
"""Quantized type → function from blocks uint8 [n, block_bytes] to float32 [n, elements]."""
