"""FlaxLlama on models whose theta is not 10,000: the number is written in its code."""

from tools.other_llamas.job import Program
from tools.other_llamas.programs.flax_llama import load

__all__ = ["PROGRAM"]

PROGRAM = Program(
    "transformers 4.57, FlaxLlama, another theta",
    "flax_llama",
    load,
    deviates="theta is 10,000, whatever the configuration says",
    at=("q_rope", "k_rope"),
    only=("grouped", "SmolLM2"),
)
