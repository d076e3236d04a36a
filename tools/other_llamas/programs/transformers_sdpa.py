"""transformers' `LlamaForCausalLM` with torch's fused attention, which is what it takes by default."""

from __future__ import annotations

from tools.other_llamas.job import ModelFiles, Program, Runner
from tools.other_llamas.programs.transformers_eager import load_with

__all__ = ["PROGRAM"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model with torch's `scaled_dot_product_attention`."""
    return load_with("sdpa", files, dtype)


PROGRAM = Program(
    "transformers 5.23, sdpa attention",
    "transformers",
    load,
    ("float32", "float16", "bfloat16"),
    devices=("cpu", "cuda"),
)
