"""Right programs on a GPU: functions that are not rounded correctly lean one way, and half precision rounds
what lies close together alike. Off by a few times as much, they are wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llama_ckpt.comparing.attention import Attention
from llama_ckpt.judging.directions import columns_alike
from llama_ckpt.judging.limits import limit_for, within
from llama_ckpt.judging.rounding_steps import PRECISIONS
from llama_ckpt.judging.step_spreads import norm_spread, product_spread, turned_spread
from llama_ckpt.judging.verdict import PointVerdict, judge
from llama_ckpt.oracle import llama as oracle

Array = NDArray[np.float64]
U = 2.0**-24
N, HEADS, HEAD_DIM = 100, 4, 32
POSITIONS = np.arange(N)
FREQUENCIES = 10000.0 ** -(np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))


def drawn(*shape: int) -> Array:
    return np.random.default_rng(3).standard_normal(shape)


def norm() -> tuple[str, Array, Any]:
    x, weight = drawn(N, 64), 1 + 0.1 * drawn(64)
    y = oracle.rms_norm(x, weight, eps=1e-5)
    return "attn_norm", y, norm_spread(x, weight, y, 1e-5, PRECISIONS["float32"])


def turned() -> tuple[str, Array, Any]:
    x = drawn(N, HEADS, HEAD_DIM)
    y = oracle.rope(x, x, POSITIONS, FREQUENCIES)[0]
    return "q_rope", y, turned_spread(x, y, POSITIONS, FREQUENCIES, PRECISIONS["float32"], False)


def attended() -> tuple[str, Array, Any]:
    q, k, v = np.random.default_rng(4).standard_normal((3, N, HEADS, HEAD_DIM))
    attention = Attention(q, k, v, POSITIONS, "float32")
    context = attention.context()
    return "attn_context", context, attention.context_spread(context, None, None)


@pytest.mark.parametrize(("step", "lean"), [(norm, -0.45), (turned, 0.16), (attended, -4.4), (attended, 6.5)])
def test_a_gpus_functions_lean_and_are_right(step: Callable[[], Any], lean: float) -> None:
    """By so many roundings as were seen of torch on CUDA."""
    point, y, spread = step()
    assert judged(point, y, np.float32(y * (1 + lean * U)), spread).verdict == "pass"
    assert judged(point, y, np.float32(y * (1 + 4 * lean * U)), spread).verdict == "fail"


def judged(point: str, o: Array, x: Any, spread: Any, dtype: str = "float32") -> PointVerdict:
    limit = within(limit_for(point, dtype, "own"), spread, o)
    return judge(point, x, o, limit=limit, dtype=dtype)


def in_tf32(x: Array) -> Array:
    """Cut off after 10 bits."""
    step = np.ldexp(1.0, np.frexp(x)[1] - 11)
    return np.trunc(x / step) * step


def emulated(a: Array, b: Array) -> Array:
    """a @ b as float32 is emulated: each number in two of TF32, the product of the small parts left out."""
    big_a, big_b = in_tf32(a), in_tf32(b)
    small_a, small_b = in_tf32(a - big_a), in_tf32(b - big_b)
    return np.float64(np.float32(big_a @ big_b + big_a @ small_b + small_a @ big_b))


@pytest.mark.parametrize("seed", range(5))
def test_a_fused_attention_that_emulates_float32_is_right(seed: int) -> None:
    """The first key outweighs all others, as in trained models, by a feature that is large in q and k."""
    draw = np.random.default_rng(seed)
    q, k, v = np.float64(np.float32(draw.standard_normal((3, N, HEADS, HEAD_DIM))))
    q[..., 5] += 8
    k[0, :, 5] += 4
    attention = Attention(q, k, v, POSITIONS, "float32")
    exact = attention.context()
    spread = attention.context_spread(exact, None, None)

    def program(product: Callable[[Array, Array], Array]) -> Array:
        heads = []
        for h in range(HEADS):
            scores = product(q[:, h], k[:, h].T) / HEAD_DIM**0.5
            scores = np.where(POSITIONS[None] <= POSITIONS[:, None], scores, -np.inf)
            probs = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(product(probs, v[:, h]) / probs.sum(axis=1, keepdims=True))
        return np.float32(np.concatenate(heads, axis=1))

    assert judged("attn_context", exact, program(emulated), spread).verdict == "pass"
    plain_tf32 = program(lambda a, b: in_tf32(a) @ in_tf32(b))
    assert judged("attn_context", exact, plain_tf32, spread).verdict == "fail"
    recorded = Attention(q, k, v, POSITIONS, "float32", probs=np.zeros((N, HEADS, N)))
    assert not recorded._is_fused and attention._is_fused


def untrained(n: int, close: float) -> tuple[Array, Array]:
    """Hidden rows, and an output matrix half of whose rows are nearly the same."""
    x, w = drawn(n, 64), 3 * drawn(512, 64) / 8
    w[:256] = w[0] + close * drawn(256, 64) / 8
    return x, w


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("n", [1, 2, 20])
def test_logits_of_untrained_tokens_are_rounded_alike(dtype: str, n: int) -> None:
    kind = getattr(torch, dtype)
    for seed in range(20):
        x, w = untrained(n, 1e-4)
        x = torch.from_numpy(x * (1 + 0.01 * seed)).to(kind).double().numpy()
        o = x @ w.T
        spread = product_spread(x, w, o, PRECISIONS[dtype])
        rounded = (torch.from_numpy(x) @ torch.from_numpy(w).to(kind).double().T).to(kind).float().numpy()
        found = judged("logits", o, rounded, spread, dtype)
        assert found.verdict == "pass", found.reason
        longer = judged("logits", o, rounded * np.float32(1.05), spread, dtype)
        assert longer.verdict == "fail"


def test_values_that_lie_anywhere_err_apart() -> None:
    o = drawn(20, 512)
    assert columns_alike(o, 2.0**-9 * np.abs(o)) is None
    o[:, 100:300] = o[:, :1] * (1 + 1e-5 * drawn(20, 200))
    groups = columns_alike(o, 2.0**-9 * np.abs(o))
    assert groups is not None and len(set(groups)) < 512 - 100
    assert columns_alike(np.zeros((2, 4)), np.zeros((2, 4))) is None  # and nothing is divided by 0
