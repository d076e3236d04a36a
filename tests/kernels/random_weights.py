"""Random weights of every file type, with factors that are finite."""

from __future__ import annotations

import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from llama_ckpt.weights.quants import PackedWeight

FACTORS = {  # where the float16 factors of a block stand
    T.Q4_0: (0,),
    T.Q4_1: (0, 2),
    T.Q5_0: (0,),
    T.Q5_1: (0, 2),
    T.Q8_0: (0,),
    T.Q2_K: (80, 82),
    T.Q3_K: (108,),
    T.Q4_K: (0, 2),
    T.Q5_K: (0, 2),
    T.Q6_K: (208,),
    T.IQ4_NL: (0,),
    T.IQ4_XS: (0,),
    T.TQ1_0: (52,),
    T.TQ2_0: (64,),
    T.IQ3_S: (0,),
}


def packed(type: T, rows: int, width: int, seed: int = 0) -> PackedWeight:
    """Random bytes; factors of both signs around 0.01."""
    generator = torch.Generator().manual_seed(seed)
    block, block_bytes = GGML_QUANT_SIZES[type]
    n = rows * width // block
    raw = torch.randint(0, 256, (n, block_bytes), dtype=torch.uint8, generator=generator)
    for start in FACTORS[type]:
        raw[:, start : start + 2] = (torch.randn(n, 1, generator=generator) * 0.01).half().view(torch.uint8)
    return PackedWeight(raw.reshape(rows, -1), type, (rows, width))
