"""Draws for the limits' measurements: a step of a Llama on random numbers of any shape, and right programs.

Widths of 32 to 4,096, heads alone or in groups, 1 to 1,000 keys, weights and inputs with and without a
mean, features and tokens that dwarf the rest, tokens that repeat, near and far positions. A draw follows
from its number alone, so that the worst can be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.diagnose.patched_oracle import PatchedOracle
from llama_ckpt.mutants.right_programs.catalogue import VARIANTS
from llama_ckpt.mutants.right_programs.framework_programs import framework_programs
from llama_ckpt.mutants.right_programs.torch_layers import in_torch
from llama_ckpt.mutants.right_programs.torch_programs import ORDERS, PlainProgram
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import BLOCK_POINTS, Case
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["STEPS", "Draw", "draw_case", "programs"]

Array: TypeAlias = NDArray[Any]

STEPS = ("rms_norm", "qkv", "rope", "attention", "swiglu", "add", "block", "output_logits")
"""What is drawn, in turn."""

MOST_PRODUCTS = 4_000_000
"""About so many products a draw's largest matrix product has, so that a draw takes milliseconds."""


@dataclass(frozen=True)
class Draw:
    """A call of a step, its inputs rounded to a precision.

    Attributes:
        case: the call, as the oracle takes it.
        dtype: the precision that its inputs are rounded to.
        about: what was drawn, a few words.
        positions: `[n]`.
    """

    case: Case
    dtype: str
    about: str
    positions: Array


def draw_case(number: int, step: str, dtype: str) -> Draw:
    """Draw number so and so of a step."""
    maker = _Maker(np.random.default_rng([number, STEPS.index(step)]), dtype)
    return maker.made(step)


ROUNDED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _Maker:
    """The numbers of one draw."""

    def __init__(self, draw: np.random.Generator, dtype: str) -> None:
        self.draw, self.dtype = draw, dtype
        self.head_dim = int(draw.choice([8, 16, 32, 64, 128], p=[0.1, 0.25, 0.25, 0.25, 0.15]))
        self.n_heads = int(draw.choice([1, 2, 4, 8]))
        self.n_kv_heads = int(draw.choice([h for h in (1, 2, 4, 8) if self.n_heads % h == 0]))
        self.width = 32 * int(round(2 ** draw.uniform(0, 7)))
        self.mean = float(draw.choice([0.0, 0.0, 0.1, 0.3, 1.0]))
        self.input_mean = float(draw.choice([0.0, 0.0, 0.3, 2.0]))
        self.outlier = float(draw.choice([1.0, 1.0, 10.0, 100.0]))
        self.repeats = bool(draw.random() < 0.15)
        self.held_exactly = bool(draw.random() < 0.3)
        self.score = float(draw.choice([0.3, 1.0, 2.5, 6.0]))
        self.eps = float(draw.choice([1e-5, 1e-6]))
        self.first = int(draw.choice([0, 0, 5, 4000]))

    def tokens(self, products: float) -> int:
        """How many, of which each costs so many products."""
        most = max(1, min(1000, int(MOST_PRODUCTS / products)))
        return max(1, int(round(most ** self.draw.uniform(0, 1))))

    def rounded(self, x: Array) -> Array:
        """In the precision, as float64."""
        return np.asarray(torch.from_numpy(np.float32(x)).to(ROUNDED[self.dtype]).double())

    def rows(self, n: int, width: int, size: float = 1.0) -> Array:
        """Inputs: some tokens larger than others, a feature that dwarfs the rest, tokens that repeat."""
        draw = self.draw
        x = draw.standard_normal((n, width)) + self.input_mean
        x[:, draw.integers(width)] *= self.outlier
        x *= np.exp(draw.normal(0, draw.choice([0.1, 1.0]), (n, 1))) * size
        if self.repeats:
            x = x[draw.integers(0, max(1, n // 8), n)]
        return self.rounded(x)

    def matrix(self, rows: int, columns: int, gain: float = 1.0) -> Array:
        """A weight whose products with a row of size 1 are about `gain` large."""
        w = (self.draw.standard_normal((rows, columns)) + self.mean) * (gain / columns**0.5)
        w = np.float32(w).astype(np.float64)
        return self.rounded(w) if self.held_exactly else w

    def norm(self, width: int) -> Array:
        """A norm's weight."""
        return np.float32(1 + 0.2 * self.draw.standard_normal(width)).astype(np.float64)

    def positions(self, n: int) -> Array:
        """They follow one another."""
        return self.first + np.arange(n)

    def made(self, step: str) -> Draw:
        """The call of a step."""
        case = getattr(self, "_" + step)()
        arguments = case.arguments
        at = arguments.get("positions", np.arange(len(arguments.get("x", ()))))
        shapes = {name: np.shape(value) for name, value in arguments.items() if np.ndim(value) > 1}
        about = f"{shapes}, mean {self.mean:g}, inputs' {self.input_mean:g}, outlier {self.outlier:g}"
        about += ", repeated tokens" if self.repeats else ""
        return Draw(case, self.dtype, about, at)

    def _rms_norm(self) -> Case:
        size = float(self.draw.choice([1e-3, 0.05, 1.0, 30.0]))
        x = self.rows(self.tokens(20 * self.width), self.width, size)
        return Case("rms_norm", {"x": x, "weight": self.norm(self.width), "eps": self.eps}, ("attn_norm",))

    def _qkv(self) -> Case:
        head_dim, q = min(self.head_dim, 32), self.n_heads
        x = self.rows(self.tokens(4 * self.width * head_dim * q), self.width)
        arguments: dict[str, Any] = {"x": x, "n_heads": q, "n_kv_heads": self.n_kv_heads}
        for name, heads in (("wq", q), ("wk", self.n_kv_heads), ("wv", self.n_kv_heads)):
            arguments[name] = self.matrix(heads * head_dim, self.width)
        return Case("qkv", arguments, ("q", "k", "v"))

    def _heads(self, n: int, heads: int, size: float) -> Array:
        return self.rows(n, heads * self.head_dim, size).reshape(n, heads, self.head_dim)

    def _turns(self) -> Array:
        theta = float(self.draw.choice([1e4, 5e5]))
        config = SimpleNamespace(
            head_dim=self.head_dim, rope_theta=theta, rope_scale=float(self.draw.choice([1, 1, 4, 3]))
        )
        return oracle.rope_frequencies(config)

    def _rope(self) -> Case:
        n = self.tokens(20 * self.n_heads * self.head_dim)
        q, k = self._heads(n, self.n_heads, 1.0), self._heads(n, self.n_kv_heads, 1.0)
        arguments = {"q": q, "k": k, "positions": self.positions(n), "frequencies": self._turns()}
        return Case("rope", arguments, ("q_rope", "k_rope"))

    def _attention(self) -> Case:
        most = int((MOST_PRODUCTS / (self.n_heads * self.head_dim)) ** 0.5)
        n = max(1, int(round(min(1000, most) ** self.draw.uniform(0, 1))))
        if self.draw.random() < 0.02:
            n, self.n_heads, self.n_kv_heads = 1000, 1, 1
        q, k = self._heads(n, self.n_heads, self.score), self._heads(n, self.n_kv_heads, 1.0)
        v = self._heads(n, self.n_kv_heads, 1.0)
        if self.repeats:  # they repeat as tokens; positions turn them apart
            at = self.positions(n), self._turns()
            q, k = (self.rounded(x) for x in oracle.rope(q, k, *at))
        wo = self.matrix(32 * int(self.draw.integers(1, 5)), self.n_heads * self.head_dim)
        arguments = {"q": q, "k": k, "v": v, "wo": wo, "positions": self.positions(n)}
        inner = ("attn_scores", "attn_probs", "attn_context")
        return Case("attention", arguments, ("attn_out",), {point: point for point in inner})

    def _swiglu(self) -> Case:
        # Wide in, or wide between: both cost memory.
        width, ffn = (self.width, 96) if self.draw.random() < 0.5 else (64, self.width)
        x = self.rows(self.tokens(3 * width * ffn), width)
        gate, up = self.matrix(ffn, width, 1.5), self.matrix(ffn, width)
        arguments = {"x": x, "w_gate": gate, "w_up": up, "w_down": self.matrix(width, ffn, 0.5)}
        inner = ("ffn_gate", "ffn_up", "ffn_swiglu")
        return Case("swiglu", arguments, ("ffn_out",), {point: point for point in inner})

    def _add(self) -> Case:
        x = self.rows(self.tokens(20 * self.width), self.width)
        other = self.rows(len(x), self.width, float(self.draw.choice([0.1, 1.0])))
        return Case("add", {"a": x, "b": other}, ("ffn_inp",))

    def _block(self) -> Case:
        width = min(self.width, 256)
        self.head_dim, self.n_heads = min(self.head_dim, 32), min(self.n_heads, 4)
        self.n_kv_heads = min(self.n_kv_heads, self.n_heads)
        q, kv, ffn = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim, 3 * width // 32 * 32
        config = LlamaConfig(1, self.n_heads, self.n_kv_heads, self.head_dim, width, ffn, 32, 8192, self.eps)
        weights = SimpleNamespace(
            attn_norm=self.norm(width),
            wq=self.matrix(q, width, min(self.score, 2.5)),
            wk=self.matrix(kv, width),
            wv=self.matrix(kv, width),
            wo=self.matrix(width, q, 0.5),
            ffn_norm=self.norm(width),
            w_gate=self.matrix(ffn, width, 1.5),
            w_up=self.matrix(ffn, width),
            w_down=self.matrix(width, ffn, 0.5),
        )
        n = self.tokens(8 * width * (q + ffn))
        x = self.rows(n, width, float(self.draw.choice([0.05, 1.0])))
        arguments = {"x": x, "weights": weights, "config": config, "positions": self.positions(n)}
        taps = {point.name: point.name for point in BLOCK_POINTS if point.name != "out"}
        return Case("block", arguments, ("out",), taps)

    def _output_logits(self) -> Case:
        weights = SimpleNamespace(output_norm=self.norm(self.width), output=self.matrix(320, self.width))
        x = self.rows(self.tokens(320 * self.width), self.width)
        config = SimpleNamespace(rms_norm_eps=self.eps)
        arguments = {"x": x, "weights": weights, "config": config}
        return Case("output_logits", arguments, ("logits",), {"output_norm": "output_norm"})


TORCH_FUNCTIONS = ("rms_norm", "qkv", "rope", "attention", "swiglu", "block", "output_logits")

SLOW = ("exp-of-libm", "weights-packed", "torch-packed")
"""Variants of the catalogue that are left out: an exp in Python; weights that come from Q8_0 alone."""


@cache
def programs(dtype: str) -> Mapping[str, Callable[[Case], dict[str, Array]]]:
    """Every right program of a precision by name: a call's answers by point."""
    found: dict[str, PatchedOracle] = {}
    for variant in VARIANTS:
        if variant.dtype == dtype and variant.name not in SLOW:
            found[variant.name] = variant.program
    kind = ROUNDED[dtype]
    for name, order in ORDERS.items():
        found[f"plain, {name}"] = _whole(PlainProgram(order, kind), kind)
    for name, program in framework_programs(kind).items():
        found[name] = _whole(program, kind)
    return {name: _answering(one, kind) for name, one in found.items()}


def _whole(program: Any, kind: torch.dtype) -> PatchedOracle:
    return in_torch({name: getattr(program, name) for name in TORCH_FUNCTIONS}, kind)


def _answering(program: PatchedOracle, kind: torch.dtype) -> Callable[[Case], dict[str, Array]]:
    def answers(case: Case) -> dict[str, Array]:
        if case.function == "add":
            a, b = (torch.from_numpy(case.arguments[name]).to(kind) for name in ("a", "b"))
            return {case.returns[0]: (a + b).float().numpy()}
        with np.errstate(all="ignore"):
            return program.answers(case)

    return answers
