"""Checks for Triton's interpreter: what the engine rounds is what its profile says, point by point."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from gguf import GGMLQuantizationType as T

from llama_ckpt.arithmetic.profiles import PROFILES
from llama_ckpt.engine.engine import Engine, Precision
from llama_ckpt.judging.limits import limit_for, within
from llama_ckpt.judging.verdict import judge
from llama_ckpt.ladder.declared_function import DeclaredFunction
from llama_ckpt.oracle.weights import OracleWeights
from tests.engine.interpreted_engine import CAPACITY, tiny, token_ids


def left(type: str, precision: str, n: int, say: Any = None) -> dict[str, tuple[float, float, str]]:
    """By point: what the profile costs, what it leaves of the engine's tensor, and the verdict on that."""
    model = tiny(T[type])
    engine, seen = Engine(model, cast("Precision", precision), capacity=CAPACITY), dict[str, Any]()
    seen["logits"] = engine.logits(token_ids(n), tap=seen.__setitem__)
    weights = OracleWeights(model.file, model.config)
    by = DeclaredFunction(PROFILES[precision], weights, model.config, np.arange(n))
    arrays = {name: tensor.float().numpy().copy() for name, tensor in seen.items()}
    found = {}
    for name, o, spread, costs in by.steps_of(arrays):
        limit = limit_for(name, "float32", "own")
        limit = limit if spread is None else within(limit, spread, o)
        one = judge(name, arrays[name], o, limit=limit, dtype="float32")
        found[name] = costs, one.err, one.verdict
        if say:
            say(type, precision, n, name, f"{costs:.1e} {one.err:.1e} of {one.limit:.1e}", one.verdict)
    return found
