"""The largest errors measured of the engine, written by `tools/measure_engine_limits.py`."""

from __future__ import annotations

from typing import Final

__all__ = ["ENGINE_MEASURED", "ENGINE_MEASURED_ON"]

ENGINE_MEASURED_ON: Final = "2 seeds, 8 shapes, 5 types, 2 to 300 tokens, on a GPU"
"""What the figures are the largest of."""

ENGINE_MEASURED: Final[dict[str, dict[str, dict[str, tuple[float, float, float, float, float]]]]] = {
    "fast": {
        "own": {
            "embd": (0.0e00, 0.0e00, 0.0e00, 0.0e00, 0.0e00),
            "v": (4.0e-04, 5.8e-04, 1.6e-03, 3.3e-05, 2.6e-05),
            "q_rope": (4.5e-04, 6.5e-04, 2.1e-03, 3.0e-05, 4.0e-05),
            "k_rope": (4.5e-04, 6.5e-04, 1.8e-03, 3.5e-05, 2.5e-05),
            "attn_context": (1.0e-03, 3.7e-03, 1.1e-02, 9.5e-05, 6.2e-05),
            "ffn_inp": (3.0e-04, 1.1e-03, 1.8e-03, 8.3e-06, 1.4e-05),
            "ffn_swiglu": (8.2e-04, 1.6e-03, 6.1e-03, 8.5e-05, 2.8e-05),
            "out": (4.1e-04, 1.0e-03, 1.7e-03, 1.6e-05, 1.5e-05),
            "logits": (3.0e-04, 1.1e-03, 2.7e-03, 7.3e-05, 3.6e-05),
        },
        "total": {
            "embd": (0.0e00, 0.0e00, 0.0e00, 0.0e00, 0.0e00),
            "v": (2.2e-03, 6.3e-03, 1.4e-02, 4.9e-05, 1.3e-04),
            "q_rope": (2.2e-03, 5.5e-03, 1.2e-02, 9.2e-05, 1.2e-04),
            "k_rope": (2.2e-03, 6.1e-03, 1.4e-02, 5.6e-05, 1.1e-04),
            "attn_context": (2.8e-03, 5.5e-03, 1.8e-02, 3.1e-04, 5.0e-04),
            "ffn_inp": (2.0e-03, 5.3e-03, 1.2e-02, 7.4e-05, 8.4e-05),
            "ffn_swiglu": (3.5e-03, 9.9e-03, 3.6e-02, 7.1e-05, 1.6e-04),
            "out": (2.1e-03, 5.6e-03, 1.4e-02, 7.7e-05, 9.0e-05),
            "logits": (2.2e-03, 5.7e-03, 1.9e-02, 3.2e-04, 3.7e-04),
        },
    },
    "high": {
        "own": {
            "embd": (0.0e00, 0.0e00, 0.0e00, 0.0e00, 0.0e00),
            "v": (1.2e-05, 1.8e-05, 6.5e-05, 4.5e-06, 6.1e-07),
            "q_rope": (1.2e-05, 1.8e-05, 6.3e-05, 4.7e-06, 6.9e-07),
            "k_rope": (1.2e-05, 1.9e-05, 6.8e-05, 4.4e-06, 5.3e-07),
            "attn_context": (3.0e-05, 6.3e-05, 2.3e-04, 1.4e-05, 1.5e-06),
            "ffn_inp": (8.6e-06, 1.6e-05, 5.0e-05, 5.4e-07, 4.2e-07),
            "ffn_swiglu": (2.4e-05, 4.0e-05, 2.4e-04, 9.4e-06, 9.4e-07),
            "out": (1.3e-05, 3.0e-05, 6.3e-05, 2.3e-06, 5.4e-07),
            "logits": (1.1e-05, 4.4e-05, 1.2e-04, 1.7e-06, 1.3e-06),
        },
        "total": {
            "embd": (0.0e00, 0.0e00, 0.0e00, 0.0e00, 0.0e00),
            "v": (7.4e-05, 1.7e-04, 4.0e-04, 1.6e-06, 3.4e-06),
            "q_rope": (7.1e-05, 1.6e-04, 3.9e-04, 1.8e-06, 2.8e-06),
            "k_rope": (7.1e-05, 1.6e-04, 3.8e-04, 1.8e-06, 3.6e-06),
            "attn_context": (7.9e-05, 1.5e-04, 5.1e-04, 7.8e-06, 7.7e-06),
            "ffn_inp": (6.6e-05, 1.5e-04, 3.6e-04, 1.9e-06, 3.8e-06),
            "ffn_swiglu": (1.1e-04, 2.9e-04, 1.2e-03, 2.6e-06, 5.2e-06),
            "out": (6.7e-05, 1.6e-04, 3.5e-04, 2.1e-06, 3.8e-06),
            "logits": (7.3e-05, 4.1e-04, 5.8e-04, 7.9e-06, 1.1e-05),
        },
    },
}
"""By precision, error_kind and point, as in `measured_errors`; teacher-forced: a block on given inputs."""
