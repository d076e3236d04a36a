"""The catalogue of benign variants: right programs that round otherwise, none of which may be condemned.

Each is the oracle with its sums in another order, its steps fused or split, or its values kept in fewer
bits; some are the layers of `checkpoints/` themselves. `dtype` is the precision whose limits it must
keep. A mutant is tried as a bug over the first of them, so that it rounds as programs do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.patched_oracle import Patch, PatchedOracle
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16
from llama_ckpt.mutants.right_programs import numpy_steps as steps
from llama_ckpt.mutants.right_programs.numpy_steps import float32
from llama_ckpt.mutants.right_programs.numpy_sums import ORDERS, Product, from_packed

__all__ = ["ROUNDING", "VARIANTS", "Variant"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Variant:
    """A right program.

    Attributes:
        name: short, unique in the catalogue.
        sentence: what it does otherwise, a clause.
        dtype: the precision under whose limits it must pass.
        make: makes the program.
        of_q8_0: it computes with weights as Q8_0 holds them, so they must come from there.
    """

    name: str
    sentence: str
    dtype: str
    make: Callable[[], PatchedOracle]
    of_q8_0: bool = False

    @cached_property
    def program(self) -> PatchedOracle:
        """The program itself."""
        return self.make()


def summed(product: Product) -> Patch:
    """Products with weights, float32, summed as `product` does."""

    def linear(right: PatchedOracle, x: Array, w: Any) -> Array:
        return product(float32(right, x), float32(right, w))

    return linear


def exact_frequencies(right: PatchedOracle, config: Any) -> Array:
    frequencies: Array = right.rope_frequencies(config)
    return frequencies


BASE: Mapping[str, Patch] = {
    "float64": float32,
    "linear": summed(lambda x, w: np.asarray(x @ w.T)),
    "rope": steps.rope,
    "rope_frequencies": exact_frequencies,
}
"""Float32 throughout, but for the angles of RoPE."""


def stored(rounded: Callable[[Array], Array]) -> Mapping[str, Patch]:
    """Values and weights kept in few bits; products summed in float32, and the sums rounded."""

    def float64(right: PatchedOracle, x: Any) -> Array:
        return rounded(float32(right, x))

    def linear(right: PatchedOracle, x: Array, w: Any) -> Array:
        return rounded(right.linear(rounded(x), rounded(float32(right, w))))

    def rope(right: PatchedOracle, *args: Any, **options: Any) -> Any:
        return tuple(map(rounded, right.rope(*args, **options)))

    def wide(function: str) -> Patch:
        """A choice is made from float32 in every precision."""
        return lambda right, *args, **options: getattr(right, function)(*args, **options)

    choices = {name: wide(name) for name in ("softmax", "argmax", "last_logits", "rope_frequencies")}
    return {"float64": float64, "linear": linear, "rope": rope, **choices}


def numpy_variant(name: str, sentence: str, dtype: str = "float32", **patches: Patch) -> Variant:
    """Float32 with some patches more."""
    return Variant(name, sentence, dtype, lambda: PatchedOracle(patches, PatchedOracle(BASE)))


def layers(dtype: str, **options: bool) -> Callable[[], PatchedOracle]:
    """The layers of `checkpoints/`, loaded when they are asked for."""

    def make() -> PatchedOracle:
        from llama_ckpt.mutants.right_programs.torch_layers import torch_layers

        return torch_layers(dtype, **options)

    return make


VARIANTS: tuple[Variant, ...] = (
    *(numpy_variant(name, sentence, linear=summed(product)) for name, sentence, product in ORDERS),
    replace(
        numpy_variant(
            "weights-packed",
            "blocks of whole numbers are summed, then multiplied by their scale",
            linear=summed(from_packed),
        ),
        of_q8_0=True,
    ),
    numpy_variant(
        "attention-fused", "attention shows nothing but its output", attention=steps.fused_attention
    ),
    numpy_variant(
        "attention-split", "keys three at a time, as FlashAttention", attention=steps.split_attention
    ),
    numpy_variant(
        "attention-scaled-queries", "the scale multiplies the queries", attention=steps.scaled_queries
    ),
    numpy_variant("attention-padded-keys", "free slots of the cache are masked", attention=steps.padded_keys),
    numpy_variant("mask-large-negative", "-10,000 masks scores", normalized_exp=steps.large_negative_mask),
    numpy_variant(
        "softmax-exp2", "the softmax takes powers of 2, times log2(e)", normalized_exp=steps.powers_of_two
    ),
    numpy_variant("exp-of-libm", "another library's exp", normalized_exp=steps.other_exp),
    numpy_variant("silu-by-tanh", "SiLU computed by tanh", sigmoid=steps.sigmoid_by_tanh),
    numpy_variant("norm-by-reciprocal", "the norm multiplies by 1/root", rms_norm=steps.reciprocal_root),
    numpy_variant("rope-complex", "RoPE by complex numbers", rope=steps.complex_rope),
    numpy_variant("qkv-fused", "one product for queries, keys and values", qkv=steps.fused_qkv),
    numpy_variant("stored-float16", "float16 values, float32 sums", "float16", **stored(to_float16)),
    numpy_variant("stored-bfloat16", "bfloat16 values, float32 sums", "bfloat16", **stored(to_bfloat16)),
    Variant("torch-fused", "the layers here, fused attention", "float32", layers("float32", fused=True)),
    Variant("torch-steps", "the layers here, step by step", "float32", layers("float32")),
    Variant(
        "torch-packed",
        "the layers here, Q8_0 weights packed",
        "float32",
        layers("float32", packed=True),
        True,
    ),
    Variant("torch-float16", "the layers here in float16", "float16", layers("float16")),
    Variant("torch-bfloat16", "the layers here in bfloat16", "bfloat16", layers("bfloat16")),
)

ROUNDING: tuple[Variant, ...] = VARIANTS[: len(ORDERS)]
"""The variants that a bug is laid over: numpy and float32, each another order of sums."""
