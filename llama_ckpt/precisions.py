"""The precisions that programs compute in, by name: the dtypes of the layers, the two of the engine."""

from __future__ import annotations

__all__ = ["DTYPES", "ENGINE_PRECISIONS"]

DTYPES = ("float32", "float16", "bfloat16")
"""What a model's layers compute in, and what a dump may say that its program did."""

ENGINE_PRECISIONS = ("fast", "high")
"""How the engine multiplies: activations as float16, or as a high and a low part."""
