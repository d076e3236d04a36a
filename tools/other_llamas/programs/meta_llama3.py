"""Meta's own Llama (llama-models): RoPE in complex numbers, float32 softmax, a cache that is always there."""

from __future__ import annotations

import os
from typing import Any

from tools.other_llamas.job import ModelFiles, Program, Runner

__all__ = ["PROGRAM"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model, as one of one: it is written for several processes."""
    import torch
    from models.llama3.args import ModelArgs
    from models.llama3.model import Transformer
    from safetensors.torch import load_file

    import llama_ckpt as lc

    _alone()
    c = files.config
    widened = int(2 * 4 * c["hidden_size"] / 3)  # it computes the inner size from the width, rounding down
    args = ModelArgs(
        dim=c["hidden_size"],
        n_layers=c["num_hidden_layers"],
        n_heads=c["num_attention_heads"],
        n_kv_heads=c["num_key_value_heads"],
        vocab_size=c["vocab_size"],
        multiple_of=1,
        ffn_dim_multiplier=(c["intermediate_size"] + 0.5) / widened,
        norm_eps=c["rms_norm_eps"],
        rope_theta=c["rope_theta"],
        max_batch_size=1,
        max_seq_len=1024,
    )
    torch.set_default_dtype(getattr(torch, dtype))  # as it does itself when it loads a checkpoint
    model = Transformer(args).eval()
    torch.set_default_dtype(torch.float32)
    model.load_state_dict(load_file(files.meta_weights))
    model.to(files.device)

    def run(token_ids: Any) -> Any:
        ids = torch.tensor([list(token_ids)], device=files.device)
        return lc.record(model, {"tokens": ids, "start_pos": 0})

    return run


def _alone() -> None:
    """Its layers ask which of several processes they are in."""
    import torch.distributed as dist
    from fairscale.nn.model_parallel.initialize import initialize_model_parallel

    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    initialize_model_parallel(1)


PROGRAM = Program(
    "Meta's llama-models 0.3",
    "llama_models",
    load,
    ("float32", "float16", "bfloat16"),
    devices=("cpu", "cuda"),
)
