"""torchtune's `llama2`: torch's fused attention, RoPE over neighbours."""

from __future__ import annotations

from tools.other_llamas.job import ModelFiles, Program, Runner

__all__ = ["PROGRAM"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model, its weights brought over by torchtune's own conversion."""
    import torch
    from safetensors.torch import load_file
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama2 import llama2

    import llama_ckpt as lc

    c = files.config
    torch.set_default_dtype(getattr(torch, dtype))  # as its recipes do: tables of angles stay in float32
    model = llama2(
        vocab_size=c["vocab_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"],
        embed_dim=c["hidden_size"],
        max_seq_len=1024,
        intermediate_dim=c["intermediate_size"],
        norm_eps=c["rms_norm_eps"],
        rope_base=c["rope_theta"],
    ).eval()
    torch.set_default_dtype(torch.float32)
    heads = {"num_heads": c["num_attention_heads"], "num_kv_heads": c["num_key_value_heads"]}
    weights = load_file(files.weights)
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(hf_to_tune(weights, **heads, dim=c["hidden_size"], head_dim=c["head_dim"]))
    model.to(files.device)
    return lambda token_ids: lc.record(model, list(token_ids))


PROGRAM = Program(
    "torchtune 0.6", "torchtune", load, ("float32", "float16", "bfloat16"), devices=("cpu", "cuda")
)
