"""The members of `Pack` and `Mode` as kernels name them."""

from __future__ import annotations

from llama_ckpt.kernels.compiler import constant
from llama_ckpt.kernels.planes import Mode, Pack

__all__ = [
    *("FLOAT32", "FLOAT16", "BFLOAT16", "NIBBLE", "BYTE", "SIX"),
    *("HALF", "PAIR", "K_PAIR", "K_TWO", "K_TWO_PAIRS"),
]

FLOAT32 = constant(Pack.FLOAT32)
FLOAT16 = constant(Pack.FLOAT16)
BFLOAT16 = constant(Pack.BFLOAT16)
NIBBLE = constant(Pack.NIBBLE)
BYTE = constant(Pack.BYTE)
SIX = constant(Pack.SIX)

HALF = constant(Mode.HALF)
PAIR = constant(Mode.PAIR)
K_PAIR = constant(Mode.K_PAIR)
K_TWO = constant(Mode.K_TWO)
K_TWO_PAIRS = constant(Mode.K_TWO_PAIRS)
