"""x-transformers with Llama's norm weights loaded as they are, where its norm multiplies by 1 + weight."""

from __future__ import annotations

from tools.other_llamas.job import ModelFiles, Program, Runner
from tools.other_llamas.programs.x_transformers_norm import load_with

__all__ = ["PROGRAM"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model with every weight as it is."""
    return load_with(files, offset=0.0)


PROGRAM = Program(
    "x-transformers 2.31, weights as they are",
    "x_transformers",
    load,
    deviates="RMSNorm multiplies by 1 + weight",
    at=("attn_norm",),
    only=("embedded",),
    devices=("cpu", "cuda"),
)
