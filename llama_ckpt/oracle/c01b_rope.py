"""RoPE's frequencies and magnitude in numpy float64, as a model's numbers ask for them.

linear    one factor for all: Chen et al. 2023, https://arxiv.org/abs/2306.15595
divisors  one for each pair, as Llama 3 and LongRoPE have: https://arxiv.org/abs/2402.13753
YaRN      Peng et al. 2023, https://arxiv.org/abs/2309.00071
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["rope_frequencies", "rope_magnitude"]

Array: TypeAlias = NDArray[np.float64]


def rope_frequencies(config: Any) -> Array:
    """Radians by which each pair of a head turns per position, `[head_dim / 2]`.

    theta^(-2i/d) for pair i of d / 2; each pair may have a divisor of its own; linear scaling by a factor s
    stretches positions, so / s; YaRN leaves fast pairs as they are and stretches slow ones.
    """
    pair = np.arange(config.head_dim // 2, dtype=np.float64)
    plain = np.asarray(config.rope_theta ** (-2.0 * pair / config.head_dim))
    factors = getattr(config, "rope_factors", ())  # a Llama-2's record of sizes has none
    if len(factors):
        plain = plain / np.asarray(factors, np.float64)
    stretched: Array = plain / config.rope_scale
    if getattr(config, "rope_yarn", None) is None:
        return stretched
    stretch = _yarn_stretch(config, pair)
    mixed: Array = stretch * stretched + (1.0 - stretch) * plain
    return mixed


def _yarn_stretch(config: Any, pair: Array) -> Array:
    """YaRN's share of the stretched frequency in each pair's own: 0 for fast pairs, 1 for slow ones."""
    yarn, d = config.rope_yarn, config.head_dim

    def turning(times: float) -> Any:  # the pair that turns so many times in the original context
        return d * np.log(yarn.original_context / (times * 2.0 * np.pi)) / (2.0 * np.log(config.rope_theta))

    fast, slow = np.floor(turning(yarn.beta_fast)), np.ceil(turning(yarn.beta_slow))
    fast, slow = np.maximum(0, fast), np.minimum(d - 1, slow)
    return np.asarray(np.clip((pair - fast) / np.maximum(0.001, slow - fast), 0.0, 1.0))


def rope_magnitude(config: Any) -> float:
    """What RoPE multiplies queries and keys by as it turns them: 1 but for YaRN or a file's factor."""
    own: float = getattr(config, "rope_attention_factor", 1.0)
    if getattr(config, "rope_yarn", None) is None or config.rope_scale <= 1.0:
        return own
    return own * (0.1 * float(np.log(config.rope_scale)) + 1.0)
