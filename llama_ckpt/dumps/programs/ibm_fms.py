"""IBM's foundation-model-stack, `LLaMA`: its projections are fused, or not, as it was built."""

from llama_ckpt.dumps.program import Program

__all__ = ["PROGRAM"]

BLOCK = "base_model.layers.{N}"

PROGRAM = Program(
    name="ibm-fms' LLaMA",
    mapping={
        "base_model.embedding": "embd",
        f"{BLOCK}.ln": "blk.{N}.attn_norm",
        f"{BLOCK}.attn.dense:input": "blk.{N}.attn_context",
        f"{BLOCK}.attn.dense": "blk.{N}.attn_out",
        f"{BLOCK}.ff_ln:input": "blk.{N}.ffn_inp",
        f"{BLOCK}.ff_ln": "blk.{N}.ffn_norm",
        f"{BLOCK}.ff_sub_layer.w2:input": "blk.{N}.ffn_swiglu",
        f"{BLOCK}.ff_sub_layer.w2": "blk.{N}.ffn_out",
        BLOCK: "blk.{N}.out",
        "base_model.dec_norm": "output_norm",
        "head": "logits",
    },
    instead=(
        (
            {f"{BLOCK}.attn.in_proj.qkv_fused": "blk.{N}.q blk.{N}.k blk.{N}.v"},
            {
                f"{BLOCK}.attn.in_proj.query": "blk.{N}.q",
                f"{BLOCK}.attn.in_proj.key": "blk.{N}.k",
                f"{BLOCK}.attn.in_proj.value": "blk.{N}.v",
            },
        ),
        (
            {f"{BLOCK}.ff_sub_layer.wg1_fused": "blk.{N}.ffn_gate blk.{N}.ffn_up"},
            {f"{BLOCK}.ff_sub_layer.wg": "blk.{N}.ffn_gate", f"{BLOCK}.ff_sub_layer.w1": "blk.{N}.ffn_up"},
        ),
    ),
)
