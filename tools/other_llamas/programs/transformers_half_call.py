"""transformers' Llama brought into half precision by `model.to(...)`, which rounds its buffer `inv_freq`."""

from __future__ import annotations

from tools.other_llamas.job import ModelFiles, Program, Runner

__all__ = ["PROGRAM"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """Loaded in float32, then converted, instead of loaded in the dtype."""
    import torch
    from transformers import LlamaForCausalLM

    import llama_ckpt as lc

    model = LlamaForCausalLM.from_pretrained(files.hf, dtype=torch.float32, attn_implementation="sdpa")
    model = model.to(files.device, getattr(torch, dtype)).eval()
    return lambda token_ids: lc.record(model, list(token_ids))


PROGRAM = Program(
    "transformers 5.23, model.half()",
    "transformers",
    load,
    ("float16", "bfloat16"),
    deviates="frequencies rounded to half precision",
    at=("q_rope", "k_rope"),
    tokens=(600,),
    devices=("cpu", "cuda"),
)
