"""The ladder: one module a checkpoint, each with one layer function; read them in order.

    from checkpoints import rms_norm, rope, qkv, attention, swiglu, block, logits, generate

A module's name is its place: `c01b_rope` is checkpoint 1B and comes after `c01_rms_norm`. To add one,
write `cNN_name.py` with a function and a `CHECKPOINT`, and its test; lists, command line and pages
follow from discovery. This package uses only the core of `llama_ckpt`, never its oracle.
"""

from checkpoints.c00_foundation import embed
from checkpoints.c01_rms_norm import rms_norm
from checkpoints.c01b_rope import rope
from checkpoints.c02_qkv import qkv
from checkpoints.c03_attention import attention
from checkpoints.c06_swiglu import swiglu
from checkpoints.c06b_experts import experts
from checkpoints.c07_block import block
from checkpoints.c08_logits import logits
from checkpoints.c09_last_logits import last_logits
from checkpoints.c10_argmax import argmax
from checkpoints.c11_softmax import softmax
from checkpoints.c12_end_to_end import generate

__all__ = [
    "argmax",
    "attention",
    "block",
    "embed",
    "experts",
    "generate",
    "last_logits",
    "logits",
    "qkv",
    "rms_norm",
    "rope",
    "softmax",
    "swiglu",
]
