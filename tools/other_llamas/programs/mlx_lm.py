"""mlx-lm's Llama on MLX for the CPU: fused norm, RoPE and attention of a framework that is not torch.

Scores and probabilities stay inside its attention. Q and K lie in half-split order, as the weights do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tools.other_llamas.hugging_face_names import INPUTS, OUTPUTS, point_at
from tools.other_llamas.job import ModelFiles, Program, Runner
from tools.other_llamas.watching import watched

__all__ = ["PROGRAM"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model from Hugging Face's files, its modules watched."""
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    mx.set_default_device(mx.cpu)
    config = files.config
    model = Model(ModelArgs.from_dict(config))
    weights = model.sanitize(mx.load(str(files.weights)))
    model.load_weights(list(weights.items()))
    model.set_dtype(getattr(mx, dtype))
    paths = {id(module): path for path, module in model.named_modules()}
    kinds = {type(module) for path, module in model.named_modules() if _is_shown(path)}

    def run(token_ids: Sequence[int]) -> Mapping[str, Any]:
        seen: dict[str, Any] = {}

        def keep(point: str, tensor: Any) -> None:
            array = np.array(tensor.astype(mx.float32))[0]
            heads = point.endswith((".q", ".k", ".v"))
            seen[point] = array.reshape(len(array), -1, config["head_dim"]) if heads else array

        def look(module: Any, args: tuple[Any, ...], returned: Any) -> None:
            path = paths.get(id(module), "")
            if path.endswith("self_attn.rope"):  # first the queries, then the keys, [1, heads, n, head_dim]
                number = path.split(".")[2]
                point = f"blk.{number}.{'k' if f'blk.{number}.q_rope' in seen else 'q'}_rope"
                keep(point, returned.transpose(0, 2, 1, 3))
            if (point := point_at(path, INPUTS)) is not None:
                keep(point, args[0])
            if (point := point_at(path, OUTPUTS)) is not None:
                keep(point, returned)

        with watched(kinds, look):
            keep("logits", model(mx.array([list(token_ids)])))
        return seen

    return run


def _is_shown(path: str) -> bool:
    return path.endswith("self_attn.rope") or point_at(path, OUTPUTS) is not None


PROGRAM = Program("mlx-lm 0.32 on MLX's CPU", "mlx", load, ("float32", "float16", "bfloat16"))
