"""How a file says that RoPE is scaled, read as llama.cpp reads it for a Llama.

    none      frequencies as they are
    linear    every frequency divided by one factor; also where a file names no type
    yarn      slow frequencies divided by the factor, fast ones kept, a ramp between (Peng et al. 2023,
              arXiv 2309.00071), and what is turned is made larger by 0.1 ln(factor) + 1
    longrope  two lists of divisors, one of which holds for a whole run: the long one where the run's context
              is longer than the original one (Ding et al. 2024, arXiv 2402.13753)

`rope.scaling.attn_factor` multiplies what is turned, with any of them. The keys that begin with `yarn_`
(betas, share of the ramp, its attention) belong to other architectures: of a Llama's file llama.cpp reads
none of them. llama.cpp and `transformers` part in three more places: an attention factor that the file names
is multiplied onto YaRN's own in the one, stands in its place in the other; LongRoPE's list is chosen by the
context that was asked for, or by the tokens so far; and without such a key llama.cpp does nothing to the
attention under LongRoPE, where the other has a formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType

from llama_ckpt.errors import UnsupportedModelError
from llama_ckpt.gguf.cursor import shown
from llama_ckpt.weights.metadata_keys import MetadataKeys
from llama_ckpt.weights.tensor_names import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS

__all__ = ["RopeScaling", "Yarn", "padded_context", "read_scaling"]

_PREFIX: Final = "llama.rope.scaling."
_TYPES: Final = ("none", "linear", "yarn", "longrope")
_POSITIONS: Final = (1 << 31) - 1  # llama.cpp's positions are int32
_PADDING: Final = 256


def padded_context(n: int) -> int:
    """The context that llama.cpp makes when asked for one of `n` positions; LongRoPE's list hangs on it."""
    return -(-n // _PADDING) * _PADDING


@dataclass(frozen=True)
class Yarn:
    """YaRN's numbers.

    Attributes:
        original_context: positions that the model was first trained for.
        beta_fast, beta_slow: turns within the original context above which a pair is fast, below which slow.
    """

    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class RopeScaling:
    """What a file says of RoPE beside its theta; each as the field of `LlamaConfig` with its name.

    Attributes:
        scale: what every frequency is divided by.
        factors, long_factors: what each frequency is divided by; the long ones are LongRoPE's alone.
        yarn: None without YaRN.
        attention_factor: what is turned is multiplied by it.
        original_context: positions that the model was first trained for; 0 where the file does not say.
    """

    scale: float
    factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    yarn: Yarn | None
    attention_factor: float
    original_context: int


def read_scaling(keys: MetadataKeys, head_dim: int, context_length: int) -> RopeScaling:
    """Read a file's keys and tensors of RoPE's scaling.

    Raises:
        ModelFileError: a key or a tensor is not what it should be.
        UnsupportedModelError: a type of scaling that llama.cpp does not know.
    """
    kind = keys.text(_PREFIX + "type", default="linear")
    if kind not in _TYPES:
        wanted = "one of " + ", ".join(_TYPES)
        raise keys.wrong(_PREFIX + "type", shown(kind), wanted, UnsupportedModelError)
    scale = _scale(keys)
    long_rope = kind == "longrope"
    factors = _divisors(keys, SHORT_FACTORS if long_rope else ROPE_FACTORS, head_dim)
    long_factors = _divisors(keys, LONG_FACTORS, head_dim) if long_rope else ()
    if bool(factors) != bool(long_factors) and long_rope:
        missing = LONG_FACTORS if factors else SHORT_FACTORS
        raise keys.wrong(f"the tensor {missing}", "none", "one, beside the other list of LongRoPE")
    context, attention = _original_context(keys), _PREFIX + "attn_factor"
    return RopeScaling(
        scale=1.0 if kind == "none" else scale,
        factors=factors,
        long_factors=long_factors,
        yarn=Yarn(context or context_length) if kind == "yarn" else None,
        attention_factor=keys.positive(attention) if attention in keys.metadata else 1.0,
        original_context=context,
    )


def _scale(keys: MetadataKeys) -> float:
    factor, old = _PREFIX + "factor", "llama.rope.scale_linear"
    used = factor if factor in keys.metadata or old not in keys.metadata else old
    value = keys.metadata.get(used)
    if isinstance(value, float) and value == 0:  # llama.cpp: zero means unscaled
        return 1.0
    return keys.positive(used, default=1.0)


def _original_context(keys: MetadataKeys) -> int:
    key = _PREFIX + "original_context_length"
    value = keys.metadata.get(key, 0)
    if type(value) is int and value == 0:  # llama.cpp: zero means not said
        return 0
    return keys.integer(key, _POSITIONS)


def _divisors(keys: MetadataKeys, name: str, head_dim: int) -> tuple[float, ...]:
    info = keys.file.tensors.get(name)
    if info is None:
        return ()
    what = f"the tensor {name}"
    if info.shape != (head_dim // 2,) or info.type != GGMLQuantizationType.F32:
        got = f"{info.type.name} {list(info.shape)}"
        raise keys.wrong(what, got, f"F32 {[head_dim // 2]}, a divisor for each pair of a head")
    factors = keys.file.float32(name)
    bad = ~(np.isfinite(factors) & (factors > 0))
    if bad.any():
        raise keys.wrong(what, factors[bad][0], "positive, finite numbers")
    return tuple(map(float, factors))
