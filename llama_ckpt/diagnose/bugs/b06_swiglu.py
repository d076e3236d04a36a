"""Checkpoint 6: the gated feed-forward network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import Patch, PatchedOracle

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]


def mixed(mix: Callable[[PatchedOracle, Array, Array], Array]) -> Patch:
    """Another product of gate and up, `mix(right, gate, up)`."""

    def swiglu(right: PatchedOracle, x: Any, w_gate: Any, w_up: Any, w_down: Any, tap: Any = None) -> Array:
        x = right.float64(x)
        gate, up = right.linear(x, w_gate), right.linear(x, w_up)
        product = mix(right, gate, up)
        for point, array in (("ffn_gate", gate), ("ffn_up", up), ("ffn_swiglu", product)):
            if tap:
                tap(point, array)
        out: Array = right.to_stream(product, w_down)
        return out

    return swiglu


def activated(activation: Callable[[Array], Array]) -> Patch:
    """Another activation of the gate."""
    return mixed(lambda right, gate, up: activation(gate).astype(gate.dtype) * up)


def exchanged(right: PatchedOracle, x: Any, w_gate: Any, w_up: Any, w_down: Any, tap: Any = None) -> Array:
    out: Array = right.swiglu(x, w_up, w_gate, w_down, tap)
    return out


def interleaved(right: PatchedOracle, x: Any, w_gate: Any, w_up: Any, w_down: Any, tap: Any = None) -> Array:
    """One matrix of gate and up, whose rows are taken by turns where they stand one half after the other."""
    both = np.concatenate([np.asarray(w_gate), np.asarray(w_up)])
    out: Array = right.swiglu(x, both[0::2], both[1::2], w_down, tap)
    return out


def silu_of_both(right: PatchedOracle, gate: Array, up: Array) -> Array:
    product: Array = gate * up * right.sigmoid(gate * up)
    return product


def gelu_by_tanh(a: Array) -> Array:
    found: Array = 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
    return found


def gelu_exact(a: Array) -> Array:
    erf = np.vectorize(math.erf, otypes=[np.float64])
    found: Array = 0.5 * a * (1 + erf(a / math.sqrt(2)))
    return found


def quick_gelu(a: Array) -> Array:
    found: Array = a / (1 + np.exp(np.minimum(-1.702 * a, 700)))
    return found


def sigmoid(a: Array) -> Array:
    found: Array = 1 / (1 + np.exp(np.minimum(-a, 700)))
    return found


def hard_swish(a: Array) -> Array:
    found: Array = a * np.clip(a + 3, 0, 6) / 6
    return found


def sum_for_product(right: PatchedOracle, gate: Array, up: Array) -> Array:
    total: Array = gate * right.sigmoid(gate) + up
    return total


def clipped(right: PatchedOracle, gate: Array, up: Array) -> Array:
    """Gate and up cut at 1, like models that train with a limit there."""
    gate = np.clip(gate, -1, 1)
    product: Array = gate * right.sigmoid(gate) * np.clip(up, -1, 1)
    return product


def bug(name: str, sentence: str, patch: Patch) -> Bug:
    return Bug(f"ffn-{name}", sentence, "6", "swiglu", patch)


BUGS = (
    bug("gate-up-swapped", "gate and up are swapped", exchanged),
    bug("gate-up-interleaved", "the rows of gate and up are taken by turns from one matrix", interleaved),
    bug("relu", "ReLU stands for SiLU", activated(lambda a: np.maximum(a, 0))),
    bug("gelu-tanh", "GELU (by tanh) stands for SiLU", activated(gelu_by_tanh)),
    bug("gelu-exact", "GELU (exact) stands for SiLU", activated(gelu_exact)),
    bug("quick-gelu", "a sigmoid(1.702 a) stands for SiLU", activated(quick_gelu)),
    bug("sigmoid", "the gate's sigmoid stands for SiLU", activated(sigmoid)),
    bug("hard-swish", "hard swish stands for SiLU", activated(hard_swish)),
    bug("activation-missing", "the gate has no activation", activated(lambda a: a)),
    bug("activation-of-product", "SiLU is applied to the product of gate and up", mixed(silu_of_both)),
    bug(
        "activation-of-up",
        "SiLU is applied to up instead of gate",
        mixed(lambda right, g, u: g * u * right.sigmoid(u)),
    ),
    bug("sum-for-product", "gate and up are added, not multiplied", mixed(sum_for_product)),
    bug("clipped", "gate and up are cut at 1 and -1", mixed(clipped)),
)
