"""curated-transformers' Llama: modules of its own, scores and softmax one by one."""

from __future__ import annotations

from tools.other_llamas.job import ModelFiles, Program, Runner

__all__ = ["PROGRAM", "load"]

MAPPING = {
    "embeddings": "embd",
    "layers.{N}.attn_input_layer_norm": "blk.{N}.attn_norm",
    "layers.{N}.mha.query": "blk.{N}.q",
    "layers.{N}.mha.key": "blk.{N}.k",
    "layers.{N}.mha.value": "blk.{N}.v",
    "layers.{N}.mha.output:input": "blk.{N}.attn_context",
    "layers.{N}.mha.output": "blk.{N}.attn_out",
    "layers.{N}.ffn_input_layer_norm:input": "blk.{N}.ffn_inp",
    "layers.{N}.ffn_input_layer_norm": "blk.{N}.ffn_norm",
    "layers.{N}.ffn.gate": "blk.{N}.ffn_gate",
    "layers.{N}.ffn.intermediate": "blk.{N}.ffn_up",
    "layers.{N}.ffn.output:input": "blk.{N}.ffn_swiglu",
    "layers.{N}.ffn.output": "blk.{N}.ffn_out",
    "layers.{N}": "blk.{N}.out",
    "output_layer_norm": "output_norm",
}


def load(files: ModelFiles, dtype: str) -> Runner:
    """The causal model, its weights brought over by its own conversion."""
    import torch
    from curated_transformers.layers import AttentionMask
    from curated_transformers.models import LlamaCausalLM
    from safetensors.torch import load_file

    import llama_ckpt as lc

    model = LlamaCausalLM.from_hf_config(hf_config=files.config)
    weights = load_file(files.weights)
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(LlamaCausalLM.state_dict_from_hf(weights))
    model = model.to(files.device, getattr(torch, dtype)).eval()
    mapping = {f"decoder.{path}": point for path, point in MAPPING.items()}
    mapping["output_embeddings"] = "logits"

    def run(token_ids: list[int]) -> object:
        ids = torch.tensor([list(token_ids)], device=files.device)
        inputs = {"piece_ids": ids, "attention_mask": AttentionMask(torch.ones_like(ids, dtype=torch.bool))}
        recorded = lc.record(model, inputs, mapping=mapping)
        recorded.token_ids = tuple(token_ids)
        return recorded

    return run


PROGRAM = Program(
    "curated-transformers 2.0",
    "curated_transformers",
    load,
    only=("embedded", "stories260K"),
    devices=("cpu", "cuda"),
)
