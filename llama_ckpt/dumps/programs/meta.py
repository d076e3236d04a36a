"""Meta's own `model.py` of Llama, and llama2.c's `model.py`, which has its names: neighbours turned."""

from llama_ckpt.dumps.program import Program

__all__ = ["PROGRAM"]

PROGRAM = Program(
    name="Meta's Llama, or llama2.c's",
    mapping={
        "tok_embeddings": "embd",
        "layers.{N}.attention_norm": "blk.{N}.attn_norm",
        "layers.{N}.attention.wq": "blk.{N}.q",
        "layers.{N}.attention.wk": "blk.{N}.k",
        "layers.{N}.attention.wv": "blk.{N}.v",
        "layers.{N}.attention.wo:input": "blk.{N}.attn_context",
        "layers.{N}.attention.wo": "blk.{N}.attn_out",
        "layers.{N}.ffn_norm:input": "blk.{N}.ffn_inp",
        "layers.{N}.ffn_norm": "blk.{N}.ffn_norm",
        "layers.{N}.feed_forward.w1": "blk.{N}.ffn_gate",
        "layers.{N}.feed_forward.w3": "blk.{N}.ffn_up",
        "layers.{N}.feed_forward.w2:input": "blk.{N}.ffn_swiglu",
        "layers.{N}.feed_forward.w2": "blk.{N}.ffn_out",
        "layers.{N}": "blk.{N}.out",
        "norm": "output_norm",
        "output": "logits",
    },
)
