"""Points by the path of the module that shows them, in programs that name modules as Hugging Face does."""

from __future__ import annotations

import re

__all__ = ["INPUTS", "OUTPUTS", "point_at"]

BLOCK = r"(?:model\.)?layers\.(\d+)(?:\.(.+))?"

OUTPUTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_out",
    None: "out",
}
"""What a block's module hands on; None is the block itself."""

INPUTS = {
    "self_attn.o_proj": "attn_context",
    "post_attention_layernorm": "ffn_inp",
    "mlp.down_proj": "ffn_swiglu",
}
"""What goes into it."""

ENDS = {"model.embed_tokens": "embd", "model.norm": "output_norm", "lm_head": "logits"}


def point_at(path: str, names: dict[str | None, str] | dict[str, str]) -> str | None:
    """The full name of the point that the module at a path shows; None where it shows none.

    Args:
        path: `model.layers.3.mlp.up_proj`.
        names: `OUTPUTS` or `INPUTS`.
    """
    if found := re.fullmatch(BLOCK, path):
        point = names.get(found.group(2))  # type: ignore[arg-type]
        return f"blk.{found.group(1)}.{point}" if point else None
    return ENDS.get(path) if names is OUTPUTS else None
