"""Checkpoint 1B, RoPE: each pair of a head's features turned by an angle that grows with the position.

    angle[t, i] = positions[t] * theta^(-2i / head_dim) / scale / factors[i]
    (q[2i], q[2i+1]) -> (q[2i] cos - q[2i+1] sin,  q[2i] sin + q[2i+1] cos) * magnitude
    q [n, n_heads, head_dim], k [n, n_kv_heads, head_dim], frequencies [head_dim / 2]

Pairs are neighbours, (2i, 2i+1): a GGUF file stores the rows of wq and wk in that order. Hugging Face
stores them so that pairs are (i, i + head_dim/2); mixing the two is the commonest bug of all. Source:
Su et al. 2021 (arXiv 2104.09864), equation 34; llama.cpp, `ggml_rope_ext` with mode 0. With YaRN (Peng et
al. 2023, arXiv 2309.00071) fast pairs keep their frequency, slow ones are divided by the scale.

torch has no rotary function; this stands on float64 `cos` and `sin` of position times frequency. Angles
built in float32, or by repeated multiplication as llama.cpp does, are off by 1e-4 at position 4,000.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from llama_ckpt.points import Case, Checkpoint, Given, block_point
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.double import double, double_device

__all__ = ["CHECKPOINT", "magnified", "rope", "rope_frequencies", "rope_magnitude"]


def rope_frequencies(config: LlamaConfig, device: torch.device | str = "cpu") -> Tensor:
    """Radians a position for each pair of features: `[head_dim / 2]` float64."""
    device = double_device(device)
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=device) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_factors:  # Llama 3: each frequency has a divisor of its own
        frequencies = frequencies / torch.tensor(config.rope_factors, dtype=torch.float64, device=device)
    kept = unscaled(config, frequencies) if config.rope_yarn else 0.0
    return frequencies / config.rope_scale * (1 - kept) + frequencies * kept


def unscaled(config: LlamaConfig, like: Tensor) -> Tensor:
    """YaRN: the share of each pair that the scale leaves alone, `[head_dim / 2]`: all of a fast pair."""
    yarn, n_pairs = config.rope_yarn, config.head_dim // 2
    assert yarn is not None

    def pair_with(turns: float) -> float:  # that turns so often within the original context
        return n_pairs * math.log(yarn.original_context / (2 * math.pi * turns)) / math.log(config.rope_theta)

    first = max(0, math.floor(pair_with(yarn.beta_fast)))
    last = min(2 * n_pairs - 1, math.ceil(pair_with(yarn.beta_slow)))
    ramp = (torch.arange(n_pairs).to(like) - first) / max(0.001, last - first)
    return 1 - ramp.clamp(0, 1)


def rope_magnitude(config: LlamaConfig) -> float:
    """What turned queries and keys are multiplied by: 1 but with YaRN or a factor of the file's."""
    if config.rope_yarn is None or config.rope_scale <= 1:
        return config.rope_attention_factor
    return config.rope_attention_factor * (1 + 0.1 * math.log(config.rope_scale))


def magnified(config: LlamaConfig) -> dict[str, Any]:
    """`rope`'s keyword argument for a magnitude; empty for a Llama-2, whose function need not know of it."""
    magnitude = rope_magnitude(config)
    return {} if magnitude == 1.0 else {"magnitude": magnitude}


def rope(
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    *,
    magnitude: float = 1.0,
    tap: Callable[[str, Tensor], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotate the pairs (2i, 2i+1) of every head of `q` and `k` by `positions * frequencies[i]`.

    Args:
        q: `[n, n_heads, head_dim]`.
        k: `[n, n_kv_heads, head_dim]`.
        positions: `[n]` int64.
        frequencies: `[head_dim / 2]` float64, radians a position.
        magnitude: what the turned pairs are multiplied by.
        tap: unused; there are no inner points.

    Returns:
        q and k, rotated, in their shapes and dtypes.
    """
    angles = (double(positions)[:, None] * frequencies)[:, None, :]  # [n, 1, head_dim/2]
    cos, sin = angles.cos() * magnitude, angles.sin() * magnitude

    def turn(x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)  # half precision is rounded once, at the end
        c, s = cos.to(wide).to(x.device), sin.to(wide).to(x.device)
        even, odd = x.to(wide).reshape(*x.shape[:-1], -1, 2).unbind(-1)  # pairs are neighbours
        return torch.stack((even * c - odd * s, even * s + odd * c), dim=-1).flatten(-2).to(x.dtype)

    return turn(q), turn(k)


def cases(given: Given) -> Iterator[Case]:
    """Queries and keys of each block."""
    for number in given.blocks:
        arguments = {
            "q": given[block_point(number, "q")],
            "k": given[block_point(number, "k")],
            "positions": given.positions,
            "frequencies": given.rope_frequencies,
            **magnified(given.config),
        }
        yield Case("rope", arguments, (block_point(number, "q_rope"), block_point(number, "k_rope")))


CHECKPOINT = Checkpoint(
    id="1B",
    title="RoPE",
    function=rope,
    stands_on=("2",),
    points=("q_rope", "k_rope"),
    max_abs=1e-5,
    cases=cases,
    torch_function="none in torch: float64 cos and sin of position x frequency, then four products",
    mistakes=(
        "Pairs (i, i + head_dim/2) are rotated where the weights are stored for neighbours, or the reverse.",
        "theta is not the file's, or its exponent is i / head_dim instead of 2i / head_dim.",
        "The position is off by one, or restarts at 0 in every call with a cache.",
        "The angle has the wrong sign, or sin and cos are swapped.",
        "V is rotated too, or Q only.",
        "Llama 3's divisors of the frequencies are left out, or applied twice: right at first, wrong far on.",
        "YaRN's attention factor is left out, or is applied to Q alone: every score is off by one factor.",
        "Angles are computed in float16 or float32: right at the start, wrong at position 4,000.",
    ),
)
