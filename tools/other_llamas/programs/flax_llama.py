"""Flax's Llama of transformers, on JAX, of its last release that had one: watched by Flax's interceptors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tools.other_llamas.hugging_face_names import INPUTS, OUTPUTS, point_at
from tools.other_llamas.job import ModelFiles, Program, Runner

__all__ = ["PROGRAM", "load"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model, brought over from Hugging Face's torch weights by transformers itself."""
    import jax
    from flax.linen import intercept_methods
    from transformers import FlaxLlamaForCausalLM

    jax.config.update("jax_platforms", "cpu")
    model = FlaxLlamaForCausalLM.from_pretrained(files.hf, from_pt=True)
    if files.config["tie_word_embeddings"]:  # its head is always a matrix of its own
        embedding = model.params["model"]["embed_tokens"]["embedding"]
        model.params["lm_head"]["kernel"] = embedding.T
    head_dim = files.config["head_dim"]

    def run(token_ids: Sequence[int]) -> Mapping[str, Any]:
        seen: dict[str, Any] = {}

        def keep(point: str, tensor: Any) -> None:
            array = np.asarray(tensor, np.float32)[0]
            heads = point.endswith((".q", ".k", ".v"))
            seen[point] = array.reshape(len(array), -1, head_dim) if heads else array

        def look(call: Any, args: Any, options: Any, context: Any) -> Any:
            returned = call(*args, **options)
            if context.method_name == "__call__":
                _show(".".join(context.module.path), args, returned, keep)
            return returned

        with intercept_methods(look):
            model(np.array([list(token_ids)]), output_attentions=True)
        return seen

    return run


def _show(path: str, args: Any, returned: Any, keep: Callable[[str, Any], None]) -> None:
    """What one module was given and handed on, by its path."""
    parts = path.split(".")
    if path.endswith("self_attn.rotary_emb"):
        for point, tensor in zip(("k_rope", "q_rope"), returned, strict=True):
            keep(f"blk.{parts[2]}.{point}", tensor)
    elif path.endswith("self_attn"):
        keep(f"blk.{parts[2]}.attn_probs", returned[1].swapaxes(1, 2))
    if (point := point_at(path, INPUTS)) is not None:
        keep(point, args[0])
    if (point := point_at(path, OUTPUTS)) is not None:
        keep(point, returned[0] if isinstance(returned, tuple) else returned)


PROGRAM = Program("transformers 4.57, FlaxLlama on JAX", "flax_llama", load, only=("embedded", "stories260K"))
