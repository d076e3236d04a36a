"""IBM's foundation-model-stack (ibm-fms): fused QKV and fused gate and up, RoPE over neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from tools.other_llamas.job import ModelFiles, Program, Runner

__all__ = ["PROGRAM", "load_with"]


def load_with(files: ModelFiles, dtype: str, *, use_cache: bool) -> Runner:
    """The model, its weights brought over by its own adapter, with a cache or without."""
    import torch
    from fms.models.llama import LLaMA, LLaMAConfig
    from fms.utils.serialization import get_adapted
    from safetensors.torch import load_file

    import llama_ckpt as lc

    c = files.config
    config = LLaMAConfig(
        src_vocab_size=c["vocab_size"],
        emb_dim=c["hidden_size"],
        norm_eps=c["rms_norm_eps"],
        nheads=c["num_attention_heads"],
        kvheads=c["num_key_value_heads"],
        nlayers=c["num_hidden_layers"],
        hidden_grow_factor=(c["intermediate_size"] + 0.5) / c["hidden_size"],  # it rounds the product down
        multiple_of=1,
        max_expected_seq_len=1024,
        rope_theta=c["rope_theta"],
    )
    model = LLaMA(config)
    weights = load_file(files.weights)
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(get_adapted("llama", "hf", weights, {"model_config": config}))
    model = model.to(files.device, getattr(torch, dtype)).eval()

    def run(token_ids: Sequence[int]) -> object:
        ids = torch.tensor([list(token_ids)], device=files.device)
        return lc.record(model, {"x": ids, "use_cache": use_cache})

    return run


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model as it generates text: with a cache, which is empty before the prompt."""
    return load_with(files, dtype, use_cache=True)


PROGRAM = Program(
    "ibm-fms 1.13", "ibm_fms", load, ("float32", "float16", "bfloat16"), devices=("cpu", "cuda")
)
