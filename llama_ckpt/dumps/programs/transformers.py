"""transformers' `LlamaForCausalLM`: separate projections, pairs of RoPE half a head apart."""

from llama_ckpt.dumps.program import Program

__all__ = ["PROGRAM"]

PROGRAM = Program(
    name="transformers' Llama",
    mapping={
        "model.embed_tokens": "embd",
        "model.layers.{N}.input_layernorm": "blk.{N}.attn_norm",
        "model.layers.{N}.self_attn.q_proj": "blk.{N}.q",
        "model.layers.{N}.self_attn.k_proj": "blk.{N}.k",
        "model.layers.{N}.self_attn.v_proj": "blk.{N}.v",
        "model.layers.{N}.self_attn.o_proj:input": "blk.{N}.attn_context",
        "model.layers.{N}.self_attn.o_proj": "blk.{N}.attn_out",
        "model.layers.{N}.post_attention_layernorm:input": "blk.{N}.ffn_inp",
        "model.layers.{N}.post_attention_layernorm": "blk.{N}.ffn_norm",
        "model.layers.{N}.mlp.gate_proj": "blk.{N}.ffn_gate",
        "model.layers.{N}.mlp.up_proj": "blk.{N}.ffn_up",
        "model.layers.{N}.mlp.down_proj:input": "blk.{N}.ffn_swiglu",
        "model.layers.{N}.mlp.down_proj": "blk.{N}.ffn_out",
        "model.layers.{N}": "blk.{N}.out",
        "model.norm": "output_norm",
        "lm_head": "logits",
    },
)
