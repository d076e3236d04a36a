"""curated-transformers in half precision beyond 512 tokens: it makes its table of angles anew, from
frequencies that `model.to(bfloat16)` has rounded."""

from tools.other_llamas.job import Program
from tools.other_llamas.programs.curated_transformers_llama import load

__all__ = ["PROGRAM"]

PROGRAM = Program(
    "curated-transformers 2.0, beyond its table",
    "curated_transformers",
    load,
    ("float16", "bfloat16"),
    deviates="frequencies rounded to half precision",
    at=("q_rope", "k_rope"),
    only=("embedded",),
    tokens=(600,),
    devices=("cpu", "cuda"),
)
