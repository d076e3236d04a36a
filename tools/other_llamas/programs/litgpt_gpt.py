"""litgpt's `GPT`, configured as a Llama: one matrix for Q, K and V, fused attention."""

from __future__ import annotations

from tools.other_llamas.job import ModelFiles, Program, Runner

__all__ = ["PROGRAM"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model, its weights brought over by litgpt's own conversion."""
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from safetensors.torch import load_file

    import llama_ckpt as lc

    c = files.config
    config = Config(
        name=files.name,
        block_size=1024,
        vocab_size=c["vocab_size"],
        padded_vocab_size=c["vocab_size"],
        n_layer=c["num_hidden_layers"],
        n_head=c["num_attention_heads"],
        n_query_groups=c["num_key_value_heads"],
        head_size=c["head_dim"],
        n_embd=c["hidden_size"],
        intermediate_size=c["intermediate_size"],
        rotary_percentage=1.0,
        rope_base=c["rope_theta"],
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=c["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
    )
    state: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, state, load_file(files.weights))
    model = GPT(config)
    model.load_state_dict(state)
    model = model.to(files.device, getattr(torch, dtype)).eval()
    return lambda token_ids: lc.record(model, list(token_ids))


PROGRAM = Program("litgpt 0.5", "litgpt", load, ("float32", "float16", "bfloat16"), devices=("cpu", "cuda"))
