"""A model's weights on a device: typed records, every tensor of the file in its place.

Matrices keep the file's type: float32, float16 and bfloat16 as torch tensors, the block formats as
`PackedWeight`. On the CPU they are the mapped file itself (copy-on-write), so loading copies
nothing; another device gets one copy of each: matrices that a fused product takes together lie together
there, q, k and v under one another, rows of gate and up in turn. Norm weights are always float32 tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.weights.block_formats import PLAIN_DTYPES
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama
from llama_ckpt.weights.loading import Progress, fill
from llama_ckpt.weights.quants import PackedWeight, Weight, dequantize
from llama_ckpt.weights.tensor_names import (
    BIAS_OF,
    BIAS_TENSORS,
    MODEL_TENSORS,
    QKV,
    block_tensor,
    fused_tensor,
    rows_of,
)

__all__ = ["BlockWeights", "ModelWeights", "load_weights", "unpacked"]


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
        w_router: [n_experts, width] of a mixture of experts, whose w_gate, w_up and w_down have all experts'
            rows under one another, [n_experts * ffn, width] and [n_experts * width, ffn]; else None.
        bq, bk, bv, bo, b_gate, b_up, b_down: float32, as long as the matrix has rows, or None.
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
    w_router: Weight | None = None
    bq: Tensor | None = None
    bk: Tensor | None = None
    bv: Tensor | None = None
    bo: Tensor | None = None
    b_gate: Tensor | None = None
    b_up: Tensor | None = None
    b_down: Tensor | None = None

    def biases(self, *names: str) -> dict[str, Any]:
        """Those of the named biases that there are: keyword arguments of the layer that adds them."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


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
    blocks: Sequence[BlockWeights]
    output_norm: Tensor
    output: Weight


def load_weights(
    file: GGUFFile,
    config: LlamaConfig,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> ModelWeights:
    """Bring every tensor of the file to a device.

    Args:
        progress: told how much was read; not on the CPU, where nothing is.

    Raises:
        ModelFileError, UnsupportedModelError: as `check_llama`, which runs first.
        ModelFileError: the file was changed meanwhile.
    """
    check_llama(file, config)
    places = _places(file, config, torch.device(device), progress)
    token_embd = _matrix(file, MODEL_TENSORS["token_embd"], places)
    return ModelWeights(
        token_embd=token_embd,
        blocks=tuple(_block(file, config, number, places) for number in range(config.n_layers)),
        output_norm=_vector(file, MODEL_TENSORS["output_norm"], places),
        output=token_embd if config.tied_output else _matrix(file, MODEL_TENSORS["output"], places),
    )


def unpacked(weights: ModelWeights, dtype: torch.dtype) -> ModelWeights:
    """The same weights, every matrix a tensor of `dtype` with the very values that `linear` makes of it.

    For many passes over few rows, where making them again in each pass takes longer than the products.
    """
    made: dict[int, Tensor] = {}  # a tied output stays the object that the embedding is

    def matrix(w: Weight) -> Tensor:
        if id(w) not in made:
            made[id(w)] = w.dequantize(dtype) if isinstance(w, PackedWeight) else w.to(dtype)
        return made[id(w)]

    def block(packed: BlockWeights) -> BlockWeights:
        vectors = ("attn_norm", "ffn_norm", *BIAS_TENSORS)
        there = [one.name for one in fields(packed) if getattr(packed, one.name) is not None]
        names = [name for name in there if name not in vectors]
        return replace(packed, **{name: matrix(getattr(packed, name)) for name in names})

    return ModelWeights(
        matrix(weights.token_embd),
        tuple(map(block, weights.blocks)),
        weights.output_norm,
        matrix(weights.output),
    )


def _places(
    file: GGUFFile, config: LlamaConfig, device: torch.device, progress: Progress | None
) -> dict[str, Tensor]:
    """Every tensor's bytes on the device, uint8 [rows, row_bytes]: on the CPU the mapped file itself."""
    if device.type == "cpu":
        return {name: _mapped(file, name) for name in file.tensors}
    places: dict[str, Tensor] = {}
    for number in range(config.n_layers):
        if not config.fused_qkv:
            places |= _under_one_another(file, [block_tensor(number, field) for field in QKV], device)
        pair = [block_tensor(number, field, experts=config.n_experts > 0) for field in ("w_gate", "w_up")]
        places |= _in_turn(file, pair, device)
    for name, info in file.tensors.items():
        if name not in places:
            places[name] = torch.empty(info.n_rows, info.row_bytes, dtype=torch.uint8, device=device)
    fill(file, {name: places[name] for name in file.tensors}, progress)
    return places


def _under_one_another(file: GGUFFile, names: list[str], device: torch.device) -> dict[str, Tensor]:
    """Places of matrices that are multiplied together: one tensor's rows, if rows are of one type."""
    infos = [file.info(name) for name in names]
    if len({(info.type, info.row_bytes) for info in infos}) > 1:
        return {}
    rows = [info.n_rows for info in infos]
    whole = torch.empty(sum(rows), infos[0].row_bytes, dtype=torch.uint8, device=device)
    return dict(zip(names, torch.split(whole, rows), strict=True))


def _in_turn(file: GGUFFile, names: list[str], device: torch.device) -> dict[str, Tensor]:
    """Places of matrices of one type and shape, their rows in turn."""
    infos = [file.info(name) for name in names]
    if len({(info.type, info.shape) for info in infos}) > 1:
        return {}
    shape = (infos[0].n_rows, len(infos), infos[0].row_bytes)
    whole = torch.empty(shape, dtype=torch.uint8, device=device)
    return dict(zip(names, whole.unbind(1), strict=True))


def _block(file: GGUFFile, config: LlamaConfig, number: int, places: dict[str, Tensor]) -> BlockWeights:
    def vector(field: str) -> Tensor:
        return _vector(file, block_tensor(number, field), places)

    def matrix(field: str) -> Weight:
        if config.fused_qkv and field in QKV:
            return _matrix(file, fused_tensor(number), places, rows_of(field, config))
        return _matrix(file, block_tensor(number, field, experts=config.n_experts > 0), places)

    def bias(field: str) -> Tensor | None:
        if BIAS_OF[field] not in config.biases_of(number):
            return None
        if config.fused_qkv and field in QKV:
            return _vector(file, fused_tensor(number, "bias"), places)[rows_of(field, config)]
        return vector(BIAS_OF[field])

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
        w_router=matrix("w_router") if config.n_experts else None,
        **{name: bias(field) for field, name in BIAS_OF.items()},
    )


def _matrix(file: GGUFFile, name: str, places: dict[str, Tensor], rows: slice = slice(None)) -> Weight:
    info, raw = file.info(name), places[name][rows]
    if info.type in PLAIN_DTYPES:
        return raw.view(PLAIN_DTYPES[info.type])
    return PackedWeight(raw, info.type, (len(raw), info.shape[-1]))


def _vector(file: GGUFFile, name: str, places: dict[str, Tensor]) -> Tensor:
    info = file.info(name)
    return dequantize(places[name], info.type, info.shape, torch.float32)


def _mapped(file: GGUFFile, name: str) -> Tensor:
    """A tensor's bytes on the mapped file, without a copy."""
    info = file.info(name)
    flat = torch.frombuffer(file.buffer(info.part), dtype=torch.uint8, count=info.nbytes, offset=info.offset)
    return flat.view(info.n_rows, info.row_bytes)
