"""ibm-fms without a cache: it knows whether keys lie by head or by token from their numbers alone.

Where there are as many tokens as key heads, here two, it takes the one for the other.
"""

from tools.other_llamas.job import ModelFiles, Program, Runner
from tools.other_llamas.programs.ibm_fms_llama import load_with

__all__ = ["PROGRAM"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model in one pass, as it is called for training."""
    return load_with(files, dtype, use_cache=False)


PROGRAM = Program(
    "ibm-fms 1.13, as many tokens as key heads",
    "ibm_fms",
    load,
    ("float32", "float16", "bfloat16"),
    deviates="without a cache, keys and values of as many tokens as key heads are taken for heads",
    at=("k_rope", "v", "attn_context"),
    only=("grouped",),
    tokens=(2,),
    devices=("cpu", "cuda"),
)
