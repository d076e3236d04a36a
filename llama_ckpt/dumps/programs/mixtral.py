"""transformers' `MixtralForCausalLM`: its Llama with experts in the place of the feed-forward network.

From version 5 on the experts of a block are one module, handed the choice and its weights; before, a block
showed the router's scores and the sum alone.
"""

from llama_ckpt.dumps.program import Program
from llama_ckpt.dumps.programs.transformers import PROGRAM as LLAMA

__all__ = ["PROGRAM"]

PROGRAM = Program(
    name="transformers' Mixtral",
    mapping={path: points for path, points in LLAMA.mapping.items() if ".mlp." not in path},
    instead=(
        (
            {
                "model.layers.{N}.mlp.gate": "blk.{N}.ffn_router",
                "model.layers.{N}.mlp.experts:input.1": "blk.{N}.ffn_chosen",
                "model.layers.{N}.mlp.experts:input.2": "blk.{N}.ffn_weights",
                "model.layers.{N}.mlp.experts": "blk.{N}.ffn_out",
            },
            {
                "model.layers.{N}.block_sparse_moe.gate": "blk.{N}.ffn_router",
                "model.layers.{N}.block_sparse_moe": "blk.{N}.ffn_out",
            },
        ),
    ),
)
