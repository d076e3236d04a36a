"""RoPE's scaling as a `config.json` says it, in GGUF's keys and tensors, so that the same angles come out.

`transformers` puts an attention factor that the configuration names in the place of YaRN's own, llama.cpp
multiplies the two; so what is written for llama.cpp is that factor divided by YaRN's own. Other betas than
YaRN's, or a ramp that is not truncated, have no key that llama.cpp reads of a Llama: they become divisors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llama_ckpt.errors import ModelFileError, UnsupportedModelError
from llama_ckpt.weights.rope_factors import Llama3Scaling, llama3_factors
from llama_ckpt.weights.tensor_names import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS

__all__ = ["Scaling", "scaling_of", "theta_of"]

Scaling = tuple[dict[str, Any], dict[str, np.ndarray]]
"""Keys, and tensors of divisors."""

_PREFIX = "llama.rope.scaling."


def theta_of(config: Mapping[str, Any]) -> float:
    """RoPE's theta, which newer configurations have among its parameters."""
    said = config.get("rope_parameters") or {}
    return float(said.get("rope_theta", config.get("rope_theta", 10000.0)))


def scaling_of(config: Mapping[str, Any], head_dim: int) -> Scaling:
    """The keys and the tensors of a configuration's scaling.

    Raises:
        UnsupportedModelError: a type that llama.cpp has no place for, or a part of one.
    """
    said = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = said.get("rope_type", said.get("type", "default"))
    trained = int(config["max_position_embeddings"])
    original = int(said.get("original_max_position_embeddings") or _original(config) or trained)
    factor = float(said.get("factor") or (trained / original if kind in ("yarn", "longrope") else 1.0))
    if kind == "default":
        return {}, {}
    if kind == "linear":
        return {_PREFIX + "type": "linear", _PREFIX + "factor": factor}, {}
    if kind == "llama3":
        low, high = float(_needed(said, "low_freq_factor")), float(_needed(said, "high_freq_factor"))
        if not high > low:
            what = "config.json: high_freq_factor of rope_scaling"
            raise ModelFileError(what, got=f"{high:g}", wanted=f"more than low_freq_factor, {low:g}")
        factors = llama3_factors(Llama3Scaling(factor, low, high, original), head_dim, theta_of(config))
        return {}, {ROPE_FACTORS: np.asarray(factors, np.float32)}
    if kind == "yarn":
        return _yarn(said, factor, original, head_dim, theta_of(config))
    if kind == "longrope":
        return _long_rope(said, factor, original)
    raise UnsupportedModelError(
        "config.json: the type of rope_scaling",
        got=kind,
        wanted="default, linear, llama3, yarn or longrope",
        hint="llama.cpp has none that changes with the length of the text",
    )


def _needed(said: Mapping[str, Any], key: str) -> Any:
    if said.get(key) is None:
        raise ModelFileError(f"config.json: {key} of rope_scaling", got="nothing", wanted="a value")
    return said[key]


def _original(config: Mapping[str, Any]) -> Any:
    return config.get("original_max_position_embeddings")


def _yarn(said: Mapping[str, Any], factor: float, original: int, head_dim: int, theta: float) -> Scaling:
    own = _larger(factor, 1.0)
    wanted = said.get("attention_factor")
    if wanted is None and said.get("mscale") and said.get("mscale_all_dim"):
        wanted = _larger(factor, said["mscale"]) / _larger(factor, said["mscale_all_dim"])
    attention = _PREFIX + "attn_factor"
    betas = float(said.get("beta_fast") or 32.0), float(said.get("beta_slow") or 1.0)
    truncated = said.get("truncate") is not False
    if betas != (32.0, 1.0) or not truncated:
        first, last = (_turning(times, original, head_dim, theta) for times in betas)
        ramp = (math.floor(first), math.ceil(last)) if truncated else (first, last)
        divisors = _ramped(factor, max(ramp[0], 0), min(ramp[1], head_dim - 1), head_dim // 2)
        larger = own if wanted is None else float(wanted)
        return {_PREFIX + "type": "none", attention: larger}, {ROPE_FACTORS: divisors}
    keys: dict[str, Any] = {
        _PREFIX + "type": "yarn",
        _PREFIX + "factor": factor,
        _PREFIX + "original_context_length": original,
    }
    return keys if wanted is None else keys | {attention: float(wanted) / own}, {}


def _turning(times: float, original: int, head_dim: int, theta: float) -> float:
    """The pair, a fraction, that turns so many times within the original context."""
    return head_dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))


def _ramped(factor: float, first: float, last: float, pairs: int) -> np.ndarray:
    """YaRN as divisors: none up to a pair, the factor from another on, and a ramp between."""
    stretched = np.clip((np.arange(pairs) - first) / max(last - first, 0.001), 0.0, 1.0)
    return np.asarray(1 / (1 - stretched + stretched / factor), np.float32)


def _larger(factor: float, share: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0


def _long_rope(said: Mapping[str, Any], factor: float, original: int) -> Scaling:
    wanted = said.get("attention_factor")
    if wanted is None:
        wanted = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    keys = {
        _PREFIX + "type": "longrope",
        _PREFIX + "original_context_length": original,
        _PREFIX + "attn_factor": float(wanted),
    }
    lists = {SHORT_FACTORS: _needed(said, "short_factor"), LONG_FACTORS: _needed(said, "long_factor")}
    return keys, {name: np.asarray(values, np.float32) for name, values in lists.items()}
