"""The shapes of seeded models: some with a name, and what any shape must keep to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, TypedDict

import numpy as np

from llama_ckpt.errors import OptionError
from llama_ckpt.making.seeded_numbers import MAX_ROW_WIDTH
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.rope_factors import Llama3Scaling, llama3_factors

__all__ = ["SHAPES", "SeededShape", "Sizes", "resolve_shape"]

_SMALLEST: Final = float(np.finfo(np.float32).tiny)
_LARGEST: Final = float(np.finfo(np.float32).max)
_MOST_LAYERS: Final = 512  # llama.cpp's limit
_MOST_POSITIONS: Final = (1 << 31) - 1


class Sizes(TypedDict, total=False):
    """The fields of a `SeededShape` as keyword arguments; None is as good as left out."""

    width: int | None
    n_heads: int | None
    ffn: int | None
    n_layers: int | None
    n_kv_heads: int | None
    head_dim: int | None
    vocab: int | None
    context_length: int | None
    rms_norm_eps: float | None
    rope_theta: float | None
    rope_scale: float | None
    llama3_factor: float | None
    tied_output: bool | None
    n_experts: int | None
    n_experts_used: int | None
    omit_keys: Sequence[str] | None


@dataclass(frozen=True)
class SeededShape:
    """What a seeded model is made of, apart from its seed and its type.

    Attributes:
        width: elements of the residual stream.
        n_heads: query heads.
        ffn: inner elements of the feed-forward network.
        n_layers: number of blocks.
        n_kv_heads: key and value heads; None: as many as query heads.
        head_dim: elements of a head, even; None: width / n_heads.
        vocab: the first entries of the vocabulary, at least 259, so that every byte has a token.
        context_length: positions, written into the metadata.
        rms_norm_eps: as in `LlamaConfig`, and so are the following three.
        rope_theta: base of RoPE's frequencies.
        rope_scale: linear scaling; 1 is none.
        llama3_factor: Llama 3's scaling, which divides slow frequencies by so much (8 in Llama 3.1, 32 in
            Llama 3.2), from 8,192 positions on; 1 is none.
        tied_output: no output matrix; the token embedding serves.
        n_experts, n_experts_used: feed-forward networks in each block, and how many compute a token; 0 and 0:
            one, and no router.
        omit_keys: metadata keys to leave out, where llama.cpp's default is what the model has.

    Raises:
        OptionError: a size out of its range, or sizes that do not go together.
    """

    width: int
    n_heads: int
    ffn: int
    n_layers: int
    n_kv_heads: int | None = None
    head_dim: int | None = None
    vocab: int = 32000
    context_length: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scale: float = 1.0
    llama3_factor: float = 1.0
    tied_output: bool = False
    n_experts: int = 0
    n_experts_used: int = 0
    omit_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, most in (
            ("width", self.width, MAX_ROW_WIDTH),
            ("n_heads", self.n_heads, MAX_ROW_WIDTH),
            ("n_kv_heads", self.n_kv_heads, MAX_ROW_WIDTH),
            ("head_dim", self.head_dim, MAX_ROW_WIDTH),
            ("ffn", self.ffn, MAX_ROW_WIDTH),
            ("n_layers", self.n_layers, _MOST_LAYERS),
            ("vocab", self.vocab, _MOST_POSITIONS),
            ("context_length", self.context_length, _MOST_POSITIONS),
        ):
            if value is not None and not 1 <= value <= most:
                raise OptionError(name, got=value, wanted=f"1 to {most}")
        for name, number in (
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("rope_scale", self.rope_scale),
            ("llama3_factor", self.llama3_factor),
        ):
            if not _SMALLEST <= number <= _LARGEST:
                raise OptionError(name, got=number, wanted="a positive number that float32 holds")
        if (
            not 0 <= self.n_experts <= _MOST_LAYERS
            or not (self.n_experts > 0) <= self.n_experts_used <= self.n_experts
        ):
            got = f"{self.n_experts_used} of {self.n_experts}"
            raise OptionError("experts", got=got, wanted=f"1 to all of up to {_MOST_LAYERS}, or 0 of 0")
        self._check_heads()

    def _check_heads(self) -> None:
        if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
            raise OptionError("n_kv_heads", got=self.n_kv_heads, wanted=f"a divisor of {self.n_heads} heads")
        if self.head_dim is None and self.width % self.n_heads:
            raise OptionError(
                "n_heads",
                got=self.n_heads,
                wanted=f"a divisor of the width {self.width}",
                hint="or give head_dim",
            )
        head_dim = self.head_dim or self.width // self.n_heads
        if head_dim % 2:
            raise OptionError("head_dim", got=head_dim, wanted="an even number, since RoPE turns pairs")
        q_width = self.n_heads * head_dim
        if q_width > MAX_ROW_WIDTH:
            raise OptionError("n_heads * head_dim", got=q_width, wanted=f"at most {MAX_ROW_WIDTH}")

    def config(self, name: str = "") -> LlamaConfig:
        """The configuration that a file of this shape has; the epsilon and the like as float32 has them."""
        head_dim, theta = self.head_dim or self.width // self.n_heads, float(np.float32(self.rope_theta))
        scaling = Llama3Scaling(self.llama3_factor)
        return LlamaConfig(
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads or self.n_heads,
            head_dim=head_dim,
            width=self.width,
            ffn=self.ffn,
            vocab_size=self.vocab,
            context_length=self.context_length,
            rms_norm_eps=float(np.float32(self.rms_norm_eps)),
            rope_theta=theta,
            rope_scale=float(np.float32(self.rope_scale)),
            rope_factors=() if self.llama3_factor == 1.0 else llama3_factors(scaling, head_dim, theta),
            tied_output=self.tied_output,
            n_experts=self.n_experts,
            n_experts_used=self.n_experts_used,
            name=name,
        )


_BARE_KEYS: Final = (
    "general.name",
    "llama.vocab_size",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_space_prefix",
)

_LLAMA_3: Final[Any] = {"n_kv_heads": 8, "vocab": 128256, "context_length": 131072, "rope_theta": 5e5}

SHAPES: Final[Mapping[str, SeededShape]] = MappingProxyType(
    {
        "llama-2-7b": SeededShape(width=4096, n_heads=32, ffn=11008, n_layers=32),
        "llama-2-13b": SeededShape(width=5120, n_heads=40, ffn=13824, n_layers=40),
        "llama-3.1-8b": SeededShape(
            n_layers=32, width=4096, n_heads=32, ffn=14336, **_LLAMA_3, llama3_factor=8.0
        ),
        "llama-3.1-70b": SeededShape(
            n_layers=80, width=8192, n_heads=64, ffn=28672, **_LLAMA_3, llama3_factor=8.0
        ),
        "llama-3.2-1b": SeededShape(
            n_layers=16, width=2048, n_heads=32, ffn=8192, **_LLAMA_3, llama3_factor=32.0, tied_output=True
        ),
        "mistral-7b": SeededShape(
            n_layers=32, width=4096, n_heads=32, n_kv_heads=8, ffn=14336, context_length=32768
        ),
        "mistral-nemo": SeededShape(
            n_layers=40,
            width=5120,
            n_heads=32,
            n_kv_heads=8,
            head_dim=128,
            ffn=14336,
            vocab=131072,
            context_length=131072,
            rope_theta=1e6,
        ),
        "mixtral-8x7b": SeededShape(
            n_layers=32,
            width=4096,
            n_heads=32,
            n_kv_heads=8,
            ffn=14336,
            context_length=32768,
            rope_theta=1e6,
            n_experts=8,
            n_experts_used=2,
        ),
        "tinyllama-1.1b": SeededShape(
            n_layers=22, width=2048, n_heads=32, n_kv_heads=4, ffn=5632, context_length=2048
        ),
        "smollm2-135m": SeededShape(
            n_layers=30,
            width=576,
            n_heads=9,
            n_kv_heads=3,
            ffn=1536,
            vocab=49152,
            context_length=8192,
            rope_theta=1e5,
            tied_output=True,
        ),
        "tiny-32l": SeededShape(width=64, n_heads=4, ffn=192, n_layers=32),
        "gqa-256": SeededShape(width=256, n_heads=8, n_kv_heads=2, ffn=512, n_layers=4, vocab=512),
        "head-128": SeededShape(
            width=256, n_heads=4, n_kv_heads=2, head_dim=128, ffn=512, n_layers=2, vocab=512
        ),
        "tied-256": SeededShape(
            width=256,
            n_heads=4,
            ffn=512,
            n_layers=2,
            vocab=512,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            rope_scale=4.0,
            tied_output=True,
        ),
        "llama3-256": SeededShape(
            width=256,
            n_heads=4,
            n_kv_heads=2,
            ffn=512,
            n_layers=2,
            vocab=512,
            context_length=131072,
            rope_theta=5e5,
            llama3_factor=8.0,
        ),
        "mixture-256": SeededShape(
            width=256, n_heads=4, n_kv_heads=2, ffn=256, n_layers=2, vocab=512, n_experts=4, n_experts_used=2
        ),
        "bare-256": SeededShape(width=256, n_heads=4, ffn=512, n_layers=2, vocab=512, omit_keys=_BARE_KEYS),
    }
)
"""Named shapes: those of models that people have, the embedded model's, and small ones for what that one
lacks: grouped heads; an explicit head size; tied output, another epsilon and theta, and linear scaling;
Llama 3's scaling; a mixture of experts; keys left out. All small ones have rows of 256, as K-quants need,
but for `tiny-32l`."""


def resolve_shape(shape: str | SeededShape | None, sizes: Sizes) -> SeededShape:
    """A shape, or the one of that name, with the sizes that are given instead of its own.

    Raises:
        OptionError: an unknown name, a size that is missing, sizes that do not go together.
    """
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    given |= {"omit_keys": tuple(given["omit_keys"])} if "omit_keys" in given else {}
    if isinstance(shape, SeededShape):
        return replace(shape, **given)
    if shape is not None:
        if shape not in SHAPES:
            raise OptionError("the shape", got=shape, wanted="one of " + ", ".join(SHAPES))
        return replace(SHAPES[shape], **given)
    for name in ("width", "n_heads", "ffn", "n_layers"):
        if name not in given:
            raise OptionError(f"a seeded model without a named shape needs {name}")
    return SeededShape(**given)
