"""The oracle that rounds: the oracle itself where nothing is declared, line by line, and as torch does it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llama_ckpt.arithmetic.fused import fused
from llama_ckpt.arithmetic.profiles import PROFILES, arithmetic_of
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.arithmetic.rounded_oracle import rounded_oracle
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.patched_oracle import PatchedOracle

CONFIG = SimpleNamespace(
    n_layers=1, n_heads=2, n_kv_heads=1, head_dim=32, rms_norm_eps=1e-5, rope_theta=1e4, rope_scale=1.0
)
WIDTH, FFN, VOCAB, TOKENS = 64, 96, 40, (1, 5, 7, 30, 2)


def model() -> Any:
    """Random weights in float32."""
    g = np.random.default_rng(4)

    def matrix(*shape: int) -> np.ndarray:
        return (g.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    block = SimpleNamespace(
        attn_norm=1 + matrix(WIDTH),
        wq=matrix(64, WIDTH),
        wk=matrix(32, WIDTH),
        wv=matrix(32, WIDTH),
        wo=matrix(WIDTH, 64),
        ffn_norm=1 + matrix(WIDTH),
        w_gate=matrix(FFN, WIDTH),
        w_up=matrix(FFN, WIDTH),
        w_down=matrix(WIDTH, FFN),
    )
    embedding = matrix(VOCAB, WIDTH) * 8
    return SimpleNamespace(
        token_embd=embedding, blocks=[block], output_norm=1 + matrix(WIDTH), output=matrix(VOCAB, WIDTH)
    )


def points(functions: Any, first_position: int = 0) -> dict[str, Any]:
    """Every point of a run of the model."""
    seen: dict[str, Any] = {}
    positions = first_position + np.arange(len(TOKENS))
    seen["logits"] = functions.logits(
        TOKENS, model(), config=CONFIG, positions=positions, tap=seen.__setitem__
    )
    return {name.removeprefix("blk.0."): value for name, value in seen.items()}


EXACT = points(oracle, 900)

FIRST_WRONG = {
    "weights": ("float16", "q"),
    "norm_weights": ("bfloat16", "attn_norm"),
    "activations": ("float16", "q"),
    "product_sums": ("float16 every 16", "q"),
    "products": ("bfloat16", "q"),
    "stream_activations": ("float16", "attn_out"),
    "stream_products": ("float16", "attn_out"),
    "turned": ("float16", "q_rope"),
    "embeddings": ("float16", "embd"),
    "norm_scaled": ("float16", "attn_norm"),
    "norms": ("float16", "attn_norm"),
    "angles": ("float32-steps", "q_rope"),
    "turns": ("bfloat16", "q_rope"),
    "rotation": ("bfloat16", "q_rope"),
    "keys": ("q8_0", "attn_scores"),
    "queries": ("float16", "attn_scores"),
    "scores": ("float16", "attn_scores"),
    "scaled": ("bfloat16", "attn_probs"),
    "probabilities": ("float16", "attn_probs"),
    "values": ("float16", "attn_context"),
    "mixing": ("float16", "attn_context"),
    "mixed_sums": ("float16", "attn_context"),
    "context": ("float16", "attn_context"),
    "silu": ("bfloat16", "ffn_swiglu"),
    "gated": ("float16", "ffn_swiglu"),
    "residual": ("float16", "ffn_inp"),
    "head": ({"products": "float16"}, "logits"),
    "fewer_rows": ({"99": {"gated": "float16"}}, "ffn_swiglu"),
}
"""A line, what it is set to, and the first point that shows it."""


def test_every_line_is_tried() -> None:
    words = {"name", "about", "source", "keys_at_a_time", "or_float32", "scaling"}  # these round nothing
    assert set(FIRST_WRONG) | words == set(vars(Arithmetic()))


def test_nothing_declared_is_the_oracle_itself() -> None:
    got = points(rounded_oracle(PROFILES["float32"]), 900)
    assert list(got) == list(EXACT)
    for name, wanted in EXACT.items():
        np.testing.assert_array_equal(got[name], wanted, err_msg=name)


@pytest.mark.parametrize("line", FIRST_WRONG)
def test_a_line_is_seen_from_its_place_on(line: str) -> None:
    value, place = FIRST_WRONG[line]
    also = {"keys_at_a_time": 2} if line == "mixed_sums" else {}
    got = points(rounded_oracle(arithmetic_of({line: value, **also})), 900)
    changed = [name for name, wanted in EXACT.items() if not np.array_equal(got[name], wanted)]
    assert changed[0] == place
    error = np.linalg.norm(got[place] - EXACT[place]) / np.linalg.norm(EXACT[place])
    assert 1e-8 < error < 2e-2


def test_where_the_scale_goes_counts_where_something_is_rounded() -> None:
    before = {"scaling": "queries and keys"}
    got = points(rounded_oracle(arithmetic_of(before)), 900)["attn_scores"]
    np.testing.assert_allclose(got, EXACT["attn_scores"], rtol=1e-6, atol=1e-6)
    tf32 = {"queries": "tf32", "keys": "tf32"}
    both = [points(rounded_oracle(arithmetic_of(tf32 | one)), 900)["attn_scores"] for one in ({}, before)]
    apart = np.linalg.norm(both[0] - both[1]) / np.linalg.norm(both[0])
    assert (apart > 1e-5) == (np.log2(CONFIG.head_dim) % 4 != 0), "the root of 1/16 is a power of two"


def test_a_fused_kernel_that_rounds_nothing_is_exact() -> None:
    for step in (1, 2, 3, 100):
        got = points(rounded_oracle(arithmetic_of({"keys_at_a_time": step})), 900)
        np.testing.assert_allclose(got["attn_context"], EXACT["attn_context"], rtol=1e-12, atol=1e-14)


def test_a_fused_kernel_by_hand() -> None:
    """Two keys one after the other, in float16: w is 1, then exp(s1 - s0), and the sum is rounded twice."""
    scores = np.array([0.0, 1.0])
    probs = np.exp(scores) / np.exp(scores).sum()
    values = np.array([[[3.0], [1 + 2.0**-11 + 2.0**-10]]])
    half = np.float16
    total = half(half(3 * np.exp(-1.0)) + (1 + 2.0**-11 + 2.0**-10))
    wanted = float(total) * probs[1]
    np.testing.assert_allclose(fused(probs[None, None], values, 1, "float32", "float16"), wanted, rtol=1e-15)


def test_what_is_patched_below_is_rounded_above() -> None:
    """A bug in a program that rounds: its step is wrong, and its result rounded."""
    scaled_twice = {
        "scaled": lambda right, scores, head_dim: right.scaled(right.scaled(scores, head_dim), head_dim)
    }
    both = rounded_oracle(PROFILES["float16-torch"], base=PatchedOracle(scaled_twice))
    got = points(both, 900)["attn_probs"]
    wanted = points(PatchedOracle(scaled_twice), 900)["attn_probs"]
    assert 0 < np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 1e-2
    assert np.array_equal(got, got.astype(np.float16))


def torch_points(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The model as transformers computes it in half precision: one torch operation after another."""
    m = model()
    w = {name: torch.from_numpy(value).to(dtype) for name, value in vars(m.blocks[0]).items()}
    x = torch.from_numpy(m.token_embd).to(dtype)[list(TOKENS)]
    seen = {"embd": x}

    def norm(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = rows.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + CONFIG.rms_norm_eps)
        return weight * scaled.to(dtype)

    h = seen["attn_norm"] = norm(x, w["attn_norm"])
    n = len(TOKENS)
    q, k, v = ((h @ w[name].T).view(n, -1, 32) for name in ("wq", "wk", "wv"))
    frequencies = torch.from_numpy(oracle.rope_frequencies(CONFIG)).float()
    angle = torch.arange(900, 900 + n).float()[:, None] * frequencies
    cos, sin = angle.cos().to(dtype)[:, None], angle.sin().to(dtype)[:, None]

    def turned(t: torch.Tensor) -> torch.Tensor:
        even, odd = t[..., 0::2], t[..., 1::2]
        return torch.stack([even * cos + -odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)

    q, k = turned(q), turned(k)
    seen |= {"q_rope": q, "k_rope": k, "v": v}
    keys, values = (t.expand(n, 2, 32).transpose(0, 1) for t in (k, v))
    scores = (q.transpose(0, 1) @ keys.transpose(1, 2)) * 32**-0.5
    scores = scores + torch.full((n, n), torch.finfo(dtype).min, dtype=dtype).triu(1)
    probs = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
    seen["attn_probs"] = probs.transpose(0, 1)
    context = seen["attn_context"] = (probs @ values).transpose(0, 1).reshape(n, -1)
    x = seen["ffn_inp"] = x + context @ w["wo"].T
    h = norm(x, w["ffn_norm"])
    gate, up = h @ w["w_gate"].T, h @ w["w_up"].T
    product = seen["ffn_swiglu"] = torch.nn.functional.silu(gate) * up
    x = seen["out"] = x + product @ w["w_down"].T
    seen["logits"] = (
        norm(x, torch.from_numpy(m.output_norm).to(dtype)) @ torch.from_numpy(m.output).to(dtype).T
    )
    return seen


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bfloat16, "bfloat16-torch"), (torch.float16, "float16-torch")]
)
def test_half_precision_is_torchs(dtype: torch.dtype, name: str) -> None:
    """Number for number, but where float32's rounding decides between neighbours, and what follows."""
    got = points(rounded_oracle(PROFILES[name]), 900)
    for point, theirs in torch_points(dtype).items():
        wanted = theirs.double().numpy()
        exact_error = np.linalg.norm(EXACT[point] - wanted) / np.linalg.norm(wanted)
        left = np.linalg.norm(got[point] - wanted) / np.linalg.norm(wanted)
        assert left <= 0.35 * exact_error, (point, left, exact_error)
        assert np.mean(got[point] == wanted) > 0.85, point


def test_int8_products_are_torchs() -> None:
    """W8A8 by torch's integer product; what is left is float32's."""
    g = np.random.default_rng(9)
    x, w = g.standard_normal((32, 256)).astype(np.float32), g.standard_normal((48, 256)).astype(np.float32)

    def integers(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = t.abs().amax(dim=1, keepdim=True) / 127
        return torch.round(t / scale).to(torch.int8), scale

    (a, s), (b, t) = (integers(torch.from_numpy(one)) for one in (x, w))
    theirs = (torch._int_mm(a, b.T).float() * s * t.T).double().numpy()
    ours = rounded_oracle(PROFILES["w8a8-per-token"]).linear(x.astype(np.float64), w)
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    assert np.linalg.norm(theirs - exact) / np.linalg.norm(exact) > 5e-3
    assert np.linalg.norm(theirs - ours) / np.linalg.norm(ours) < 1e-7
