"""One step of a block after another on recorded tensors: what each should be, given what it is computed from.

    in -> attn_norm -> q, k, v -> q_rope, k_rope -> attn_scores -> attn_probs -> attn_context -> attn_out
       -> ffn_inp -> ffn_norm -> ffn_gate, ffn_up -> ffn_swiglu -> ffn_out -> out

A point is computed from the recorded points that its step reads, so its error is made in that step alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.oracle.patched_oracle import PatchedOracle

__all__ = ["STEPS", "computed", "step_of"]

Array: TypeAlias = NDArray[np.float64]

Step: TypeAlias = Callable[[PatchedOracle, Any, Any, Any, list[Array]], Array]
"""Of an oracle, a block's weights, the model's configuration, the positions, and what is read."""


def bias_field(weight: str) -> str:
    """The field of the bias that belongs to a matrix's."""
    return weight.replace("w_", "b_").replace("w", "b")


def _product(weight: str, heads: str = "", by: str = "linear") -> Step:
    def step(oracle: PatchedOracle, weights: Any, config: Any, positions: Any, read: list[Array]) -> Array:
        y: Array = getattr(oracle, by)(read[0], getattr(weights, weight))
        if (bias := getattr(weights, bias_field(weight), None)) is not None:
            y = y + bias
        return y.reshape(len(y), getattr(config, heads), -1) if heads else y

    return step


def _norm(weight: str) -> Step:
    def step(oracle: PatchedOracle, weights: Any, config: Any, positions: Any, read: list[Array]) -> Array:
        y: Array = oracle.rms_norm(read[0], getattr(weights, weight), eps=config.rms_norm_eps)
        return y

    return step


def _rope(oracle: PatchedOracle, weights: Any, config: Any, positions: Any, read: list[Array]) -> Array:
    turn = {"frequencies": oracle.rope_frequencies(config), "magnitude": oracle.rope_magnitude(config)}
    y: Array = oracle.rope(read[0], read[0], positions, **turn)[0]
    return y


def _scores(oracle: PatchedOracle, weights: Any, config: Any, positions: Any, read: list[Array]) -> Array:
    q, k = read
    scores: Array = oracle.scores(_heads_first(q, config), _heads_first(k, config))
    return scores.transpose(1, 0, 2)


def _probs(oracle: PatchedOracle, weights: Any, config: Any, positions: Any, read: list[Array]) -> Array:
    scaled = oracle.scaled(read[0].transpose(1, 0, 2), config.head_dim)
    probs: Array = oracle.probabilities(np.where(oracle.visible(positions, None), scaled, -np.inf))
    return probs.transpose(1, 0, 2)


def _context(oracle: PatchedOracle, weights: Any, config: Any, positions: Any, read: list[Array]) -> Array:
    probs, v = read
    mixed: Array = oracle.mixed(probs.transpose(1, 0, 2), _heads_first(v, config))
    return mixed.transpose(1, 0, 2).reshape(len(v), -1)


def _attended(oracle: PatchedOracle, weights: Any, config: Any, positions: Any, read: list[Array]) -> Array:
    """The context where nothing between is shown, as of a fused kernel."""
    q, k, v = read
    scores = _scores(oracle, weights, config, positions, [q, k])
    probs = _probs(oracle, weights, config, positions, [scores])
    return _context(oracle, weights, config, positions, [probs, v])


def _heads_first(x: Array, config: Any) -> Array:
    """`[n_heads, n, head_dim]`, key and value heads as often as query heads read them."""
    return np.repeat(x, config.n_heads // x.shape[1], axis=1).transpose(1, 0, 2)


def _sum(oracle: PatchedOracle, weights: Any, config: Any, positions: Any, read: list[Array]) -> Array:
    y: Array = oracle.added(*read)
    return y


def _gated(oracle: PatchedOracle, weights: Any, config: Any, positions: Any, read: list[Array]) -> Array:
    y: Array = oracle.gated(*read)
    return y


STEPS: Final[Mapping[str, tuple[tuple[str, ...], Step]]] = {
    "attn_norm": (("in",), _norm("attn_norm")),
    "q": (("attn_norm",), _product("wq", "n_heads")),
    "k": (("attn_norm",), _product("wk", "n_kv_heads")),
    "v": (("attn_norm",), _product("wv", "n_kv_heads")),
    "q_rope": (("q",), _rope),
    "k_rope": (("k",), _rope),
    "attn_scores": (("q_rope", "k_rope"), _scores),
    "attn_probs": (("attn_scores",), _probs),
    "attn_context": (("attn_probs", "v"), _context),
    "attn_out": (("attn_context",), _product("wo", by="to_stream")),
    "ffn_inp": (("in", "attn_out"), _sum),
    "ffn_norm": (("ffn_inp",), _norm("ffn_norm")),
    "ffn_gate": (("ffn_norm",), _product("w_gate")),
    "ffn_up": (("ffn_norm",), _product("w_up")),
    "ffn_swiglu": (("ffn_gate", "ffn_up"), _gated),
    "ffn_out": (("ffn_swiglu",), _product("w_down", by="to_stream")),
    "out": (("ffn_inp", "ffn_out"), _sum),
}
"""A block's points: what each reads, `in` for the block's input, and how it is computed."""


_FUSED: Final[tuple[tuple[str, ...], Step]] = (("q_rope", "k_rope", "v"), _attended)


def step_of(point: str, recorded: Collection[str]) -> tuple[tuple[str, ...], Step]:
    """What a point's step reads, and the step; over attention as a whole where it shows no probabilities."""
    return _FUSED if point == "attn_context" and "attn_probs" not in recorded else STEPS[point]


def computed(
    oracle: PatchedOracle,
    point: str,
    recorded: Mapping[str, Array],
    *,
    weights: Any,
    config: Any,
    positions: Any,
) -> Array:
    """A block's point as an oracle makes it from the recorded points that its step reads.

    Args:
        recorded: the block's points by neutral name, float64, and `in`.
        weights: the block's.
    """
    reads, step = step_of(point, recorded)
    return step(oracle, weights, config, positions, [recorded[name] for name in reads])
