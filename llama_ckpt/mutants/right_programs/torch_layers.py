"""The layers of `checkpoints/` in the oracle's place: arrays go in, arrays come out, torch is between."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType

import checkpoints
from checkpoints.c08_logits import output_logits
from llama_ckpt.diagnose.patched_oracle import Patch, PatchedOracle
from llama_ckpt.model import pick_dtype
from llama_ckpt.weights.quants import PackedWeight
from llama_ckpt.weights.records import BlockWeights

__all__ = ["in_torch", "torch_layers"]

VALUES = frozenset({"x", "q", "k", "v"})
INTEGERS = frozenset({"token_ids", "positions", "sequence_ids"})


def torch_layers(dtype: str, *, fused: bool = False, packed: bool = False) -> PatchedOracle:
    """An oracle whose layer functions are torch's.

    Args:
        dtype: what they compute in.
        fused: no taps, so that attention is one fused call.
        packed: matrices are quantized to Q8_0 and stay so; those that came from Q8_0 keep their values.
    """
    kind = pick_dtype(dtype)
    names = ("embed", "rms_norm", "rope", "qkv", "attention", "swiglu", "block", "logits")
    functions = {name: getattr(checkpoints, name) for name in (*names, "last_logits", "argmax", "softmax")}
    functions["output_logits"] = output_logits
    return in_torch(functions, kind, fused=fused, packed=packed)


def in_torch(
    functions: Mapping[str, Callable[..., Any]],
    dtype: torch.dtype,
    *,
    fused: bool = False,
    packed: bool = False,
) -> PatchedOracle:
    """An oracle of other functions that take torch tensors, by the oracle's names; as `torch_layers`."""
    return PatchedOracle({name: _patch(f, dtype, fused, packed) for name, f in functions.items()})


def _patch(function: Callable[..., Any], dtype: torch.dtype, fused: bool, packed: bool) -> Patch:
    parameters = inspect.signature(function).parameters
    own_dtype = {"dtype": dtype} if "dtype" in parameters else {}

    def patch(right: PatchedOracle, *args: Any, tap: Any = None, **options: Any) -> Any:
        given = dict(zip(parameters, args, strict=False)) | options
        tensors = {name: _tensor(name, value, dtype, packed) for name, value in given.items()}
        shown = None if fused or tap is None else lambda point, tensor: tap(point, _array(tensor))
        with torch.inference_mode():
            result = function(**tensors, **own_dtype, **({"tap": shown} if "tap" in parameters else {}))
        return tuple(map(_array, result)) if isinstance(result, tuple) else _array(result)

    return patch


def _tensor(name: str, value: Any, dtype: torch.dtype, packed: bool) -> Any:
    """An argument as the layer wants it, by its name."""
    if name == "weights":
        return _weights(value, packed)
    if name in INTEGERS:
        return None if value is None else torch.as_tensor(np.asarray(value, dtype=np.int64))
    if name in VALUES:
        return torch.from_numpy(np.array(value, dtype=np.float64)).to(dtype)
    if name == "logits":
        return torch.from_numpy(np.array(value, dtype=np.float32))
    if name == "frequencies":
        return torch.from_numpy(np.array(value, dtype=np.float64))
    return _weight(value, packed) if isinstance(value, np.ndarray) else value


def _weights(record: Any, packed: bool) -> Any:
    fields = {name: value for name, value in vars(record).items() if not name.startswith("_")}
    blocks = (
        {"blocks": tuple(_weights(one, packed) for one in fields.pop("blocks"))} if "blocks" in fields else {}
    )
    made = {name: _weight(value, packed) for name, value in fields.items() if value is not None}
    return BlockWeights(**made) if "wq" in made else SimpleNamespace(**made, **blocks)


def _weight(value: Any, packed: bool) -> Any:
    array = np.array(value, dtype=np.float32)
    if not packed or array.ndim != 2:
        return torch.from_numpy(array)
    kind = GGMLQuantizationType.Q8_0
    raw = torch.from_numpy(gguf.quants.quantize(array, kind))
    return PackedWeight(raw, kind, (array.shape[0], array.shape[1]))


def _array(tensor: torch.Tensor) -> Any:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
