"""Our own layers, as the ladder tries them: what the other programs stand beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.other_llamas.job import ModelFiles, Program, Runner

__all__ = ["PROGRAM"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """Every point through the layers' own tap; without a tokenizer, which not every model has."""
    import torch

    from checkpoints.c08_logits import logits
    from llama_ckpt.gguf.file import open_gguf
    from llama_ckpt.weights.config import LlamaConfig
    from llama_ckpt.weights.records import load_weights

    file = open_gguf(files.gguf)
    config = LlamaConfig.from_gguf(file)
    weights, kind = load_weights(file, config, files.device), getattr(torch, dtype)

    @torch.inference_mode()
    def run(token_ids: Sequence[int]) -> Mapping[str, Any]:
        seen: dict[str, Any] = {}
        at = torch.arange(len(token_ids), device=files.device)
        ids = torch.tensor(list(token_ids), device=files.device)
        seen["logits"] = logits(ids, weights, config=config, positions=at, dtype=kind, tap=seen.__setitem__)
        return {name: tensor.float().cpu().numpy() for name, tensor in seen.items()}

    return run


PROGRAM = Program(
    "the layers here", "", load, ("float32", "float16", "bfloat16"), measure=True, devices=("cpu", "cuda")
)
