"""Programs that round and do not say so, each place otherwise: it is told, and covers no bug."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llama_ckpt.arithmetic.profiles import read_arithmetic
from llama_ckpt.comparing import compare_dump, explaining
from tests.comparing.ported_llama import Array, F, Port, compared, seeded
from tests.comparing.rounding_ports import HalfCachePort, IntegerPort, TF32Port, in_int8


def cast(x: Array, dtype: torch.dtype) -> Array:
    return np.asarray(torch.from_numpy(np.ascontiguousarray(x, F)).to(dtype).float().numpy())


class Autocast(Port):
    """Products in bfloat16, in and out; norms, softmax and the stream in float32."""

    def product(self, x: Array, weight: Array) -> Array:
        narrow = cast(x, torch.bfloat16) @ cast(weight, torch.bfloat16).T
        return cast(narrow, torch.bfloat16)

    def multiplied(self, x: Array) -> Array:
        return cast(x, torch.bfloat16)


class WeightsInInt8(Port):
    """Weights in int8 with a scale for each row, activations in float32."""

    def product(self, x: Array, weight: Array) -> Array:
        integers, scales = in_int8(weight.astype(F))
        return x @ integers.T.astype(F) * scales.T


class Fp8Cache(TF32Port):
    """TF32 products with weights; keys and values in fp8."""

    multiplied = Port.multiplied

    def cached(self, keys: Array, values: Array) -> tuple[Array, Array]:
        return cast(keys, torch.float8_e4m3fn), cast(values, torch.float8_e4m3fn)


class HalfStream(HalfCachePort):
    """A float16 cache, and the residual stream in float16."""

    def block(self, x: Array, weights: Any, positions: Array, at: str) -> Array:
        normed = self.keep(at + "attn_norm", self.norm(x, weights.attn_norm))
        attended = self.attention(normed, weights, positions, at)
        x = self.keep(at + "ffn_inp", cast(x + attended, torch.float16))
        normed = self.keep(at + "ffn_norm", self.norm(x, weights.ffn_norm))
        return cast(x + self.keep(at + "ffn_out", self.feed_forward(normed, weights, at)), torch.float16)


class Int8HalfCache(IntegerPort):
    """W8A8, and a float16 cache."""

    cached = HalfCachePort.cached


RIGHT: dict[type[Port], str] = {
    Autocast: "weights and activations of products in bfloat16, attention's products in bfloat16",
    WeightsInInt8: "weights in int8 per row",
    Fp8Cache: "weights and activations of products in TF32, keys and values in fp8_e4m3",
    HalfStream: "keys and values in float16, steps between in float16",
    Int8HalfCache: "weights and activations of products in int8 per row, keys and values in float16",
}
"""A right program, and what is said of it."""


@pytest.mark.parametrize("program", RIGHT)
def test_each_place_is_told_and_passes_once_it_is_declared(program: type[Port], tmp_path: Path) -> None:
    port = program(seeded(n_layers=1))
    report = compared(port, tmp_path, 12)
    assert (report.verdict, report.exit_code) == ("arithmetic", 3), report.reason
    assert report.reason.startswith(f"differs by arithmetic, no bug seen: {RIGHT[program]}, left unexplained")
    assert report.arithmetic is not None
    again = read_arithmetic(report.arithmetic.option.removeprefix("--arithmetic ").strip("'"))
    assert compared(port, tmp_path, 12, arithmetic=again).verdict == "pass"


class OtherTheta(TF32Port):
    """TF32, and a base of RoPE that is not the file's."""

    def frequencies(self) -> Array:
        return np.asarray(1.0 / 1e4 ** (np.arange(0, self.config.head_dim, 2) / self.config.head_dim))


class OtherEpsilon(Autocast):
    """Products in bfloat16, and an epsilon that is not the file's."""

    def norm(self, x: Array, weight: Array) -> Array:
        scale = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=F) + F(1e-3))
        return np.asarray(x * scale * weight.astype(F))


class OfUp(WeightsInInt8):
    """Weights in int8, and SiLU of the wrong half."""

    def gated(self, gate: Array, up: Array) -> Array:
        return Port.gated(self, up, gate)


@pytest.mark.parametrize(
    ("program", "point", "words"),
    [
        (OtherTheta, "q_rope", ("RoPE's theta is 10,000", "TF32")),
        (OtherEpsilon, "attn_norm", ("epsilon is 0.001", "bfloat16")),
        (OfUp, "ffn_swiglu", ("SiLU is applied to up", "weights in int8 per row")),
    ],
)
def test_a_bug_beside_it_is_seen_and_named(
    program: type[Port], point: str, words: tuple[str, str], tmp_path: Path
) -> None:
    report = compared(program(seeded(n_layers=1)), tmp_path, 12)
    assert (report.verdict, report.exit_code) == ("fail", 1)
    assert report.first_wrong is not None and report.first_wrong.name == f"blk.0.{point}"
    bug, _, behind = report.reason.partition("behind arithmetic: ")
    assert words[0] in bug and words[1] in behind


def test_nothing_is_explained_before_it_is_known_what_is_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rounded product would take seconds on a wide model, and the words be thrown away."""
    explained = []
    monkeypatch.setattr(explaining, "diagnose_points", lambda *_, **__: explained.append(1))
    report = compared(TF32Port(seeded(n_layers=1)), tmp_path, 12)
    assert report.verdict == "arithmetic"
    assert not explained


def test_what_was_left_out_for_that_is_explained_where_roundings_explain_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = OfUp(seeded(n_layers=1))
    monkeypatch.setattr(compare_dump, "_made", lambda result: 1)
    report = compared(port, tmp_path, 12)
    assert report.verdict == "fail"
    assert report.diagnoses
