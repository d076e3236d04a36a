"""A model's weights on a device: typed records, every tensor of the file in its place.

Matrices keep the file's type: float32, float16 and bfloat16 as torch tensors, the block formats as
`PackedWeight`. On the CPU they are the mapped file itself (copy-on-write), so loading copies
nothing; another device gets one copy of each. Norm weights are always float32 tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llama_ckpt.block_formats import PLAIN_DTYPES
from llama_ckpt.config import LlamaConfig
from llama_ckpt.gguf_file import GGUFFile, check_llama
from llama_ckpt.quants import PackedWeight, Weight, dequantize
from llama_ckpt.tensor_names import MODEL_TENSORS, block_tensor

__all__ = ["BlockWeights", "ModelWeights", "load_weights"]


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """One block's weights; matrices are [out, in].

    Attributes:
        attn_norm: float32 [width].
        wq: [n_heads * head_dim, width].
        wk: [n_kv_heads * head_dim, width].
        wv: [n_kv_heads * head_dim, width].
        wo: [width, n_heads * head_dim].
        ffn_norm: float32 [width].
        w_gate: [ffn, width].
        w_up: [ffn, width].
        w_down: [width, ffn].
    """

    attn_norm: Tensor
    wq: Weight
    wk: Weight
    wv: Weight
    wo: Weight
    ffn_norm: Tensor
    w_gate: Weight
    w_up: Weight
    w_down: Weight


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """A model's weights.

    Attributes:
        token_embd: [vocab, width].
        blocks: one record a block, in order.
        output_norm: float32 [width].
        output: [vocab, width]; the very object `token_embd` where the file ties the two.
    """

    token_embd: Weight
    blocks: tuple[BlockWeights, ...]
    output_norm: Tensor
    output: Weight


def load_weights(file: GGUFFile, config: LlamaConfig, device: torch.device | str = "cpu") -> ModelWeights:
    """Bring every tensor of the file to a device.

    Raises:
        ModelFileError, UnsupportedModelError: as `check_llama`, which runs first.
    """
    check_llama(file, config)
    device = torch.device(device)
    token_embd = _matrix(file, MODEL_TENSORS["token_embd"], device)
    return ModelWeights(
        token_embd=token_embd,
        blocks=tuple(_block(file, number, device) for number in range(config.n_layers)),
        output_norm=_vector(file, MODEL_TENSORS["output_norm"], device),
        output=token_embd if config.tied_output else _matrix(file, MODEL_TENSORS["output"], device),
    )


def _block(file: GGUFFile, number: int, device: torch.device) -> BlockWeights:
    def vector(field: str) -> Tensor:
        return _vector(file, block_tensor(number, field), device)

    def matrix(field: str) -> Weight:
        return _matrix(file, block_tensor(number, field), device)

    return BlockWeights(
        attn_norm=vector("attn_norm"),
        wq=matrix("wq"),
        wk=matrix("wk"),
        wv=matrix("wv"),
        wo=matrix("wo"),
        ffn_norm=vector("ffn_norm"),
        w_gate=matrix("w_gate"),
        w_up=matrix("w_up"),
        w_down=matrix("w_down"),
    )


def _matrix(file: GGUFFile, name: str, device: torch.device) -> Weight:
    info, raw = file.info(name), _bytes(file, name).to(device)
    if info.type in PLAIN_DTYPES:
        return raw.view(PLAIN_DTYPES[info.type])
    out, width = info.shape
    return PackedWeight(raw, info.type, (out, width))


def _vector(file: GGUFFile, name: str, device: torch.device) -> Tensor:
    info = file.info(name)
    return dequantize(_bytes(file, name).to(device), info.type, info.shape, torch.float32)


def _bytes(file: GGUFFile, name: str) -> Tensor:
    """A tensor's bytes, uint8 [rows, row_bytes], on the mapped file without a copy."""
    info = file.info(name)
    flat = torch.frombuffer(file.buffer, dtype=torch.uint8, count=info.nbytes, offset=info.offset)
    return flat.view(info.n_rows, info.row_bytes)
