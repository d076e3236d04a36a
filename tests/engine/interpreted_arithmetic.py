"""Checks for Triton's interpreter: what the engine rounds is what its profile says, point by point."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from gguf import GGMLQuantizationType as T

from llama_ckpt.arithmetic.profiles import PROFILES
from llama_ckpt.engine.engine import Engine, Precision
from llama_ckpt.judging.limits import limit_for, within
from llama_ckpt.judging.verdict import judge
from llama_ckpt.ladder.declared_function import DeclaredFunction
from llama_ckpt.oracle.weights import OracleWeights
from tests.engine.interpreted_engine import CAPACITY, tiny, token_ids

EIGHT_BITS = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}


PROFILE_OF = {("high", False): "high-packed"}
"""Of a precision, and whether the file is in float16; else the profile of the precision's name."""


def as_a_gpu_rounds() -> None:
    """Have the interpreter round to 8 bits as a GPU does (PTX: cvt.rn.satfinite); by itself it cuts off."""
    from triton.runtime import interpreter

    by_itself = interpreter._convert_float

    def convert(x: Any, from_dtype: Any, to_dtype: Any, mode: Any) -> Any:
        form = EIGHT_BITS.get(to_dtype.name)
        if form is None:
            return by_itself(x, from_dtype, to_dtype, mode)
        most = torch.finfo(form).max
        return torch.from_numpy(x.astype(np.float32)).clamp(-most, most).to(form).view(torch.uint8).numpy()

    interpreter._convert_float = convert


def left(type: str, precision: str, n: int) -> dict[str, tuple[float, float, str]]:
    """By point: what the profile costs, what it leaves of the engine's tensor, and the verdict on that."""
    as_a_gpu_rounds()
    model, profile = tiny(T[type]), PROFILE_OF.get((precision, type == "F16"), precision)
    engine, seen = Engine(model, cast("Precision", precision), capacity=CAPACITY), dict[str, Any]()
    seen["logits"] = engine.logits(token_ids(n), tap=seen.__setitem__)
    weights = OracleWeights(model.file, model.config)
    by = DeclaredFunction(PROFILES[profile], weights, model.config, np.arange(n))
    arrays = {name: tensor.float().numpy().copy() for name, tensor in seen.items()}
    found = {}
    for name, o, spread, costs in by.steps_of(arrays):
        limit = limit_for(name, "float32", "own")
        limit = limit if spread is None else within(limit, spread, o)
        one = judge(name, arrays[name], o, limit=limit, dtype="float32")
        found[name] = costs, one.err, one.verdict
    return found


def held(type: str, precision: str, n: int) -> None:
    """Every point is the profile's, to float32's own rounding; and what it rounds is not nothing."""
    found = left(type, precision, n)
    assert len(found) >= 15
    assert all(verdict == "pass" for _, _, verdict in found.values()), found
    exact = precision == "high" and type == "F16"
    costs = [found[name][0] for name in ("blk.0.v", "blk.1.attn_context", "blk.1.ffn_swiglu")]
    assert max(costs) < 1e-7 if exact else min(costs) > 5e-6, costs
