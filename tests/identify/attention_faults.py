"""RoPE, norms and attentions on drawn inputs, wrong as a test makes them, and what is identified."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from llama_ckpt.identify.identify import Identification, identify
from llama_ckpt.identify.record import NOTHING_AROUND, Around, Asked
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.judging.matching import passes
from llama_ckpt.judging.metrics import causal_mask
from llama_ckpt.oracle.patched_oracle import RIGHT
from llama_ckpt.points import Case

__all__ = ["SHAPES", "attended", "attention_case", "found_in", "normed_case", "rope_case"]

SHAPES = ((4, 2, 8), (8, 4, 16), (3, 1, 32))
"""Query heads, key heads, head_dim."""

INNER = ("attn_scores", "attn_probs", "attn_context")


@cache
def rope_case(shape: tuple[int, int, int], n: int, first: int = 0, theta: float = 1e4) -> Case:
    """A rotation of drawn q and k."""
    heads, kv_heads, d = shape
    rng = np.random.default_rng([*shape, n])
    arguments = {
        "q": _drawn(rng, n, heads, d),
        "k": _drawn(rng, n, kv_heads, d),
        "positions": np.arange(first, first + n),
        "frequencies": theta ** (-np.arange(0, d, 2) / d),
    }
    return Case("rope", arguments, ("blk.0.q_rope", "blk.0.k_rope"))


@cache
def normed_case(width: int, n: int, scale: float) -> Case:
    """A norm of drawn rows whose sizes are about `scale`."""
    rng = np.random.default_rng([width, n])
    arguments = {"x": scale * _drawn(rng, n, width), "weight": 1 + 0.3 * _drawn(rng, width), "eps": 1e-5}
    return Case("rms_norm", arguments, ("blk.0.ffn_norm",))


@cache
def attention_case(shape: tuple[int, int, int], n: int) -> Case:
    """An attention of drawn q, k and v."""
    heads, kv_heads, d = shape
    rng = np.random.default_rng([*shape, n])
    arguments = {
        "q": 1.5 * _drawn(rng, n, heads, d),
        "k": _drawn(rng, n, kv_heads, d),
        "v": _drawn(rng, n, kv_heads, d),
        "wo": _drawn(rng, heads * d, heads * d) / 8,
        "positions": np.arange(n),
        "sequence_ids": None,
    }
    return Case("attention", arguments, ("blk.0.attn_out",), {point: f"blk.0.{point}" for point in INNER})


def _drawn(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32).astype(np.float64)


def attended(
    case: Case,
    *,
    seen: Any = None,
    scale: float | None = None,
    reads: Any = None,
    values: Any = None,
    more: Any = 0.0,
) -> dict[str, Any]:
    """An attention by the formula, wrong where the arguments say so.

    Args:
        seen: `[n, n]`, None: causal; scale: of the scores; reads, values: key and value head of each head.
        more: what is added to each row's sum of exponentials, `[n, 1]`, where a score of 0 counts 1.
    """
    q, k, v = (case.arguments[name].transpose(1, 0, 2) for name in "qkv")
    n, d = q.shape[1:]
    own = np.arange(len(q)) // (len(q) // len(k))
    reads = own if reads is None else np.asarray(reads)
    scores = q @ k[reads].transpose(0, 2, 1)
    visible = np.tril(np.ones((n, n), bool)) if seen is None else seen
    z = np.where(visible, scores * (d**-0.5 if scale is None else scale), -np.inf)
    most = z.max(-1, keepdims=True)
    e = np.exp(z - most)
    probs = e / (e.sum(-1, keepdims=True) + more * np.exp(-most))
    context = (probs @ v[reads if values is None else np.asarray(values)]).transpose(1, 0, 2).reshape(n, -1)
    made = (scores.transpose(1, 0, 2), probs.transpose(1, 0, 2), context, context @ case.arguments["wo"].T)
    return dict(zip((*INNER, "attn_out"), made, strict=True))


def found_in(
    case: Case,
    wrong: Mapping[str, Any],
    *,
    hidden: tuple[str, ...] = (),
    around: Around = NOTHING_AROUND,
    dtype: str = "float32",
) -> Identification:
    """What is identified where these points of block 0 are as given, in float32, and the others right.

    Args:
        hidden: points that were not recorded.
    """
    pieces = []
    for name, o in RIGHT.answers(case).items():
        point = name.removeprefix("blk.0.")
        if point not in hidden:
            mask = causal_mask(case.arguments["positions"]) if point == "attn_scores" else None
            x = np.asarray(wrong.get(point, o), np.float32)
            pieces.append(Evidence(name, x, o, limit_for(point, dtype, "own"), case, mask))
    order = (*INNER, "attn_out", "q_rope", "k_rope", "ffn_norm")
    pieces.sort(key=lambda one: order.index(one.name.removeprefix("blk.0.")))
    first = next(one for one in pieces if not passes(one.x, one.o, one.limit, one.mask))
    return identify(Asked([first, *(one for one in pieces if one is not first)], around))
