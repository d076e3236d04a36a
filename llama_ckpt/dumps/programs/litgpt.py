"""litgpt's `GPT` as a Llama: one fused projection of q, k and v, pairs of RoPE half a head apart."""

from llama_ckpt.dumps.program import Program

__all__ = ["PROGRAM"]

PROGRAM = Program(
    name="litgpt's GPT",
    mapping={
        "transformer.wte": "embd",
        "transformer.h.{N}.norm_1": "blk.{N}.attn_norm",
        "transformer.h.{N}.attn.proj:input": "blk.{N}.attn_context",
        "transformer.h.{N}.attn.proj": "blk.{N}.attn_out",
        "transformer.h.{N}.norm_2:input": "blk.{N}.ffn_inp",
        "transformer.h.{N}.norm_2": "blk.{N}.ffn_norm",
        "transformer.h.{N}.mlp.fc_1": "blk.{N}.ffn_gate",
        "transformer.h.{N}.mlp.fc_2": "blk.{N}.ffn_up",
        "transformer.h.{N}.mlp.proj:input": "blk.{N}.ffn_swiglu",
        "transformer.h.{N}.mlp.proj": "blk.{N}.ffn_out",
        "transformer.h.{N}": "blk.{N}.out",
        "transformer.ln_f": "output_norm",
        "lm_head": "logits",
    },
    instead=(
        (
            {"transformer.h.{N}.attn.qkv": "blk.{N}.q blk.{N}.k blk.{N}.v"},
            {"transformer.h.{N}.attn.attn": "blk.{N}.q blk.{N}.k blk.{N}.v"},  # before 0.5.4, group by group
        ),
    ),
)
