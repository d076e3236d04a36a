"""keras-hub's Llama on Keras with torch beneath: layers of Keras, einsum for projections, fused attention."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tools.other_llamas.job import ModelFiles, Program, Runner
from tools.other_llamas.watching import watched

__all__ = ["PROGRAM"]

OUTPUTS = {
    "_self_attention_layernorm": "attn_norm",
    "_self_attention_layer._query_dense": "q",
    "_self_attention_layer._key_dense": "k",
    "_self_attention_layer._value_dense": "v",
    "_self_attention_layer._output_dense": "attn_out",
    "_feedforward_layernorm": "ffn_norm",
    "_feedforward_gate_dense": "ffn_gate",
    "_feedforward_intermediate_dense": "ffn_up",
    "_feedforward_output_dense": "ffn_out",
}
"""A block's parts, by what they hand on."""

INPUTS = {
    "_self_attention_layer._output_dense": "attn_context",
    "_feedforward_layernorm": "ffn_inp",
    "_feedforward_output_dense": "ffn_swiglu",
}
"""The same, by what goes in."""

ROTARY = "_self_attention_layer.rotary_embedding_layer"


def load(files: ModelFiles, dtype: str) -> Runner:
    """The backbone, its weights set one by one."""
    os.environ |= {"KERAS_BACKEND": "torch", "KERAS_TORCH_DEVICE": files.device}
    import torch
    from keras_hub.models import LlamaBackbone
    from safetensors.torch import load_file

    c = files.config
    model = LlamaBackbone(
        vocabulary_size=c["vocab_size"],
        num_layers=c["num_hidden_layers"],
        num_query_heads=c["num_attention_heads"],
        num_key_value_heads=c["num_key_value_heads"],
        hidden_dim=c["hidden_size"],
        intermediate_dim=c["intermediate_size"],
        rope_max_wavelength=c["rope_theta"],
        layer_norm_epsilon=c["rms_norm_eps"],
        dtype=dtype,
    )
    _fill(model, load_file(files.weights))
    parts = _parts(model)
    kinds = {type(part) for part in parts.values()}

    @torch.inference_mode()
    def run(token_ids: Sequence[int]) -> Mapping[str, Any]:
        seen: dict[str, Any] = {}

        def keep(point: str, tensor: Any) -> None:
            array = tensor.detach().float().cpu().numpy()[0]
            seen[point] = array.reshape(len(array), -1) if point.endswith(".attn_context") else array

        ids = torch.tensor([list(token_ids)], device=files.device)
        with watched(kinds, _look(parts, keep)):
            hidden = model({"token_ids": ids, "padding_mask": torch.ones_like(ids)})
        keep("logits", model.token_embedding(hidden, reverse=True))
        return seen

    return run


def _parts(model: Any) -> dict[tuple[str, str], Any]:
    """Every layer that is looked at, by its block ("" outside of all) and its path there."""
    found = {("", "embd"): model.token_embedding, ("", "output_norm"): model.layer_norm}
    for number, block in enumerate(model.transformer_layers):
        found[str(number), ""] = block
        for path in {*OUTPUTS, *INPUTS, ROTARY}:
            part = block
            for name in path.split("."):
                part = getattr(part, name)
            found[str(number), path] = part
    return found


def _look(parts: Mapping[tuple[str, str], Any], keep: Callable[[str, Any], None]) -> Callable[..., None]:
    places = {id(part): place for place, part in parts.items()}
    turned: set[str] = set()

    def look(layer: Any, args: tuple[Any, ...], returned: Any) -> None:
        if id(layer) not in places:
            return
        block, path = places[id(layer)]
        if not block:
            keep(path, returned)
        elif path == ROTARY:  # queries first, then keys
            keep(f"blk.{block}.{'k_rope' if block in turned else 'q_rope'}", returned)
            turned.add(block)
        elif not path:
            keep(f"blk.{block}.out", returned)
        else:
            if path in INPUTS:
                keep(f"blk.{block}.{INPUTS[path]}", args[0])
            keep(f"blk.{block}.{OUTPUTS[path]}", returned)

    return look


def _fill(model: Any, weights: Mapping[str, Any]) -> None:
    """Hugging Face's tensors into Keras' kernels, whose inputs come first."""
    embedding = weights["model.embed_tokens.weight"]
    model.token_embedding.set_weights([embedding, weights.get("lm_head.weight", embedding).T])
    model.layer_norm.set_weights([weights["model.norm.weight"]])
    for number, block in enumerate(model.transformer_layers):
        attention = block._self_attention_layer
        for layer, name in (
            (block._self_attention_layernorm, "input_layernorm"),
            (attention._query_dense, "self_attn.q_proj"),
            (attention._key_dense, "self_attn.k_proj"),
            (attention._value_dense, "self_attn.v_proj"),
            (attention._output_dense, "self_attn.o_proj"),
            (block._feedforward_layernorm, "post_attention_layernorm"),
            (block._feedforward_gate_dense, "mlp.gate_proj"),
            (block._feedforward_intermediate_dense, "mlp.up_proj"),
            (block._feedforward_output_dense, "mlp.down_proj"),
        ):
            weight = weights[f"model.layers.{number}.{name}.weight"]
            inputs_first = weight.T if weight.ndim == 2 else weight
            layer.set_weights([inputs_first.reshape(layer.weights[0].shape)])


PROGRAM = Program(
    "keras-hub 0.32", "keras_hub", load, ("float32", "float16", "bfloat16"), devices=("cpu", "cuda")
)
