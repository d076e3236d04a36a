"""RoPE's scaling as a `config.json` of `transformers` says it, so that the same angles come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama_ckpt.oracle.llama import rope_frequencies, rope_magnitude
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.rope_factors import llama3_scaling_of

__all__ = ["hf_scaling"]


def hf_scaling(config: LlamaConfig) -> dict[str, Any] | None:
    """How `transformers` scales RoPE in the same way; None for not at all."""
    magnitude = rope_magnitude(config)
    if config.rope_long_factors:
        return _long_rope(config, config.rope_factors, config.rope_long_factors, magnitude)
    yarn = config.rope_yarn
    if yarn is not None and not config.rope_factors:
        return {
            "rope_type": "yarn",
            "factor": config.rope_scale,
            "original_max_position_embeddings": yarn.original_context,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "attention_factor": magnitude,
        }
    if yarn is None and magnitude == 1.0:
        if not config.rope_factors:
            plain = config.rope_scale == 1.0
            return None if plain else {"rope_type": "linear", "factor": config.rope_scale}
        known = llama3_scaling_of(config.rope_factors, config.head_dim, config.rope_theta)
        if known is not None and config.rope_scale == 1.0:
            return {
                "rope_type": "llama3",
                "factor": known.factor,
                "low_freq_factor": known.low,
                "high_freq_factor": known.high,
                "original_max_position_embeddings": known.original_context,
            }
    plain_turns = rope_frequencies(replace(config, rope_factors=(), rope_yarn=None, rope_scale=1.0))
    divisors = tuple(map(float, plain_turns / rope_frequencies(config)))
    return _long_rope(config, divisors, divisors, magnitude)


def _long_rope(
    config: LlamaConfig, short: Sequence[float], long: Sequence[float], magnitude: float
) -> dict[str, Any]:
    """Divisors, and no more: with one list for every length LongRoPE can say any other scaling."""
    scale = config.rope_scale if config.rope_long_factors else 1.0
    return {
        "rope_type": "longrope",
        "factor": 1.0,
        "short_factor": [scale * one for one in short],
        "long_factor": [scale * one for one in long],
        "attention_factor": magnitude,
        "original_max_position_embeddings": config.original_context or config.context_length,
    }
