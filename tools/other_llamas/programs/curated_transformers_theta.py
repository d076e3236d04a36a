"""curated-transformers' Llama on models whose theta is not 10,000: its configuration reads no theta."""

from tools.other_llamas.job import Program
from tools.other_llamas.programs.curated_transformers_llama import load

__all__ = ["PROGRAM"]

PROGRAM = Program(
    "curated-transformers 2.0, another theta",
    "curated_transformers",
    load,
    deviates="theta is 10,000, whatever the configuration says",
    at=("q_rope", "k_rope"),
    only=("grouped", "SmolLM2"),
    devices=("cpu", "cuda"),
)
