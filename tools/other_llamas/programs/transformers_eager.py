"""transformers' `LlamaForCausalLM` with its eager attention: products and softmax, one by one."""

from __future__ import annotations

from tools.other_llamas.job import ModelFiles, Program, Runner

__all__ = ["PROGRAM", "load_with"]


def load_with(attention: str, files: ModelFiles, dtype: str) -> Runner:
    """The model with one of transformers' attentions, recorded by `lc.record`."""
    import torch
    from transformers import LlamaForCausalLM

    import llama_ckpt as lc

    kind = getattr(torch, dtype)
    model = LlamaForCausalLM.from_pretrained(files.hf, dtype=kind, attn_implementation=attention)
    model = model.to(files.device).eval()

    return lambda token_ids: lc.record(model, list(token_ids))


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model with eager attention."""
    return load_with("eager", files, dtype)


PROGRAM = Program(
    "transformers 5.23, eager attention",
    "transformers",
    load,
    ("float32", "float16", "bfloat16"),
    devices=("cpu", "cuda"),
)
