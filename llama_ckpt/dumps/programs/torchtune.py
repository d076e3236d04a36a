"""torchtune's `TransformerDecoder` as it builds Llama: separate projections, neighbours turned."""

from llama_ckpt.dumps.program import Program

__all__ = ["PROGRAM"]

PROGRAM = Program(
    name="torchtune's TransformerDecoder",
    mapping={
        "tok_embeddings": "embd",
        "layers.{N}.sa_norm": "blk.{N}.attn_norm",
        "layers.{N}.attn.q_proj": "blk.{N}.q",
        "layers.{N}.attn.k_proj": "blk.{N}.k",
        "layers.{N}.attn.v_proj": "blk.{N}.v",
        "layers.{N}.attn.output_proj:input": "blk.{N}.attn_context",
        "layers.{N}.attn.output_proj": "blk.{N}.attn_out",
        "layers.{N}.mlp_norm:input": "blk.{N}.ffn_inp",
        "layers.{N}.mlp_norm": "blk.{N}.ffn_norm",
        "layers.{N}.mlp.w1": "blk.{N}.ffn_gate",
        "layers.{N}.mlp.w3": "blk.{N}.ffn_up",
        "layers.{N}.mlp.w2:input": "blk.{N}.ffn_swiglu",
        "layers.{N}.mlp.w2": "blk.{N}.ffn_out",
        "layers.{N}": "blk.{N}.out",
        "norm": "output_norm",
        "output": "logits",
    },
)
