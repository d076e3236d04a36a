"""Right programs that round, by other people's hands: torch's own integer, fp8 and half products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from llama_ckpt.arithmetic.profiles import read_arithmetic
from llama_ckpt.arithmetic.tensor_cores import fp8_products
from tests.comparing.ported_llama import Array, F, Port, compared, seeded
from tests.comparing.rounding_ports import FusedBfloat16Port, FusedFloat16Port, TF32Port, in_int8


class IntMmPort(Port):
    """W8A8 by torch's integer product."""

    def product(self, x: Array, weight: Array) -> Array:
        (rows, of_rows), (columns, of_columns) = in_int8(x.astype(F)), in_int8(weight.astype(F))
        few = [torch.from_numpy(part.astype(np.int8)) for part in (rows, columns)]
        sums = torch._int_mm(few[0], few[1].T.contiguous()).numpy()
        return sums.astype(F) * of_rows * of_columns.T


def in_fp8(x: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor in E4M3 and its one scale, as torch's users make them."""
    wide = torch.from_numpy(np.ascontiguousarray(x, F))
    scale = wide.abs().max() / 448
    return (wide / scale).to(torch.float8_e4m3fn), scale


class ScaledMmPort(Port):
    """fp8 by torch's scaled product."""

    def product(self, x: Array, weight: Array) -> Array:
        (a, of_a), (b, of_b) = in_fp8(x), in_fp8(weight)
        made: Any = torch._scaled_mm(a, b.T, scale_a=of_a, scale_b=of_b, out_dtype=torch.float32)
        return np.asarray(made.numpy())


class CastPort(Port):
    """fp8 by a cast and a product in float32."""

    def product(self, x: Array, weight: Array) -> Array:
        (a, of_a), (b, of_b) = in_fp8(x), in_fp8(weight)
        return np.asarray((a.float() @ b.float().T * of_a * of_b).numpy())


class RunQPort(Port):
    """runq.c's: 64 numbers to a scale, whole numbers by C's `round`."""

    def in_groups(self, x: Array) -> Array:
        groups = x.astype(F).reshape(len(x), -1, 64)
        scale = np.abs(groups).max(-1, keepdims=True) / F(127)
        ratio = groups / scale
        whole = np.copysign(np.floor(np.abs(ratio) + F(0.5)), ratio)
        return (whole * scale).reshape(x.shape)

    def product(self, x: Array, weight: Array) -> Array:
        return self.in_groups(x) @ self.in_groups(weight).T


class AvxPort(Port):
    """ggml's with AVX2: rows in blocks of 32, x · (127 / largest), the scale in float16."""

    def product(self, x: Array, weight: Array) -> Array:
        blocks = x.astype(F).reshape(len(x), -1, 32)
        largest = np.abs(blocks).max(-1, keepdims=True)
        scale = (largest / F(127)).astype(np.float16).astype(F)
        return (np.rint(blocks * (F(127) / largest)) * scale).reshape(x.shape) @ weight.astype(F).T


class HalfCacheAvxPort(AvxPort):
    """The same with its cache in float16, and rows of queries and probabilities as its products take them."""

    def cached(self, keys: Array, values: Array) -> tuple[Array, Array]:
        return self.multiplied(keys), self.multiplied(values)

    def multiplied(self, x: Array) -> Array:
        return x.astype(np.float16).astype(F)


class FlashAvxPort(HalfCacheAvxPort):
    """With flash attention of fewer than 64 tokens: key by key, the running sum of values in float16."""

    def mixed(self, scores: Array, visible: Array, values: Array) -> Array:
        n, heads, _ = scores.shape
        largest, shares = np.full((n, heads, 1), -np.inf, F), np.zeros((n, heads, 1), F)
        total = np.zeros((n, heads, values.shape[-1]), np.float16)
        scaled = np.where(visible, scores * F(self.config.head_dim**-0.5), F(-np.inf))
        for key, value in enumerate(values):
            before, largest = largest, np.maximum(largest, scaled[..., key, None])
            old, new = np.exp(before - largest), np.exp(scaled[..., key, None] - largest)
            total = (total * old).astype(np.float16)
            total = (total + new * value).astype(np.float16)
            shares = shares * old + new
        return total.astype(F) / shares

    def attention(self, x: Array, weights: Any, positions: Array, at: str) -> Array:
        out = super().attention(x, weights, positions, at)  # all but what the kernel keeps to itself
        del self.seen[at + "attn_scores"], self.seen[at + "attn_probs"], out
        q, k, v = (self.multiplied(self.seen[at + name]) for name in ("q_rope", "k_rope", "v"))
        scores = np.einsum("nhd,mhd->nhm", q, self.repeated(k)).astype(F)
        visible = (positions[:, None] >= positions)[:, None]
        mixed = self.keep(
            at + "attn_context", self.mixed(scores, visible, self.repeated(v)).reshape(len(x), -1)
        )
        return self.keep(at + "attn_out", self.product(mixed, weights.wo))


class CandlePort(Port):
    """candle's blocks by hand: x times 1 / scale, C's `round`, and then the scale in float16."""

    def product(self, x: Array, weight: Array) -> Array:
        blocks = x.astype(F).reshape(len(x), -1, 32)
        scale = np.abs(blocks).max(-1, keepdims=True) / F(127)
        ratio = blocks * (F(1) / scale)
        whole = np.copysign(np.floor(np.abs(ratio) + F(0.5)), ratio)
        return (whole * scale.astype(np.float16)).astype(F).reshape(x.shape) @ weight.astype(F).T


class TorchRunQPort(RunQPort):
    """runq.c's arithmetic in torch: integers are multiplied, and each group's sum has both scales."""

    def product(self, x: Array, weight: Array) -> Array:
        (rows, of_rows), (columns, of_columns) = self.parted(x), self.parted(weight)
        sums = torch.einsum("ngk,mgk->nmg", rows, columns).float()
        return np.asarray((sums * of_rows[:, None] * of_columns[None]).sum(-1).numpy())

    def parted(self, x: Array) -> tuple[torch.Tensor, torch.Tensor]:
        groups = torch.from_numpy(x.astype(F)).reshape(len(x), -1, 64)
        scale = groups.abs().amax(-1) / 127
        ratio = groups / scale[..., None]
        whole = torch.copysign(torch.floor(ratio.abs() + 0.5), ratio)
        return whole.to(torch.int32), scale


class GgufPort(Port):
    """Rows as the package `gguf` puts them into blocks, which is ggml's plain C."""

    def product(self, x: Array, weight: Array) -> Array:
        blocks = quants.quantize(np.ascontiguousarray(x, F), GGMLQuantizationType.Q8_0)
        return quants.dequantize(blocks, GGMLQuantizationType.Q8_0) @ weight.astype(F).T


class RunPort(Port):
    """run.c's: each sum from first to last in float32, angles position times frequency."""

    def product(self, x: Array, weight: Array) -> Array:
        total = np.zeros((len(x), len(weight)), F)
        for i in range(x.shape[1]):
            total += x[:, i : i + 1] * weight[:, i].astype(F)
        return total

    def angles(self, positions: Array) -> Array:
        return np.asarray(positions.astype(F)[:, None] * self.frequencies().astype(F))


class HopperPort(Port):
    """fp8 by the tensor cores of an H200."""

    def product(self, x: Array, weight: Array) -> Array:
        (a, of_a), (b, of_b) = in_fp8(x), in_fp8(weight)
        wide = [np.asarray(part.float().numpy(), np.float64) for part in (a, b)]
        return (fp8_products(wide[0], wide[1], "fp8 tensor cores") * float(of_a) * float(of_b)).astype(F)


class ByInversePort(Port):
    """W8A8 as torch computes its scales on a GPU: times 1 / 127."""

    def product(self, x: Array, weight: Array) -> Array:
        scales = [np.abs(part).max(-1, keepdims=True).astype(F) * (F(1) / F(127)) for part in (x, weight)]
        rows, columns = (np.rint(p.astype(F) / s) for p, s in zip((x, weight), scales, strict=True))
        return (rows @ columns.T).astype(F) * scales[0] * scales[1].T


class FastTurnsPort(Port):
    """Float32, cosines and sines by a GPU's instructions: times 1 / 2 pi, cut off, and a table's error."""

    def table(self, positions: Array) -> tuple[Array, Array]:
        angles = self.angles(positions).astype(F)
        turns = angles.astype(np.float64) * np.float64(F(1 / (2 * np.pi)))
        digits = 2.0 ** (np.floor(np.log2(np.maximum(turns, 1e-30))) - 23)
        near = 2 * np.pi * np.floor(turns / digits) * digits  # FMUL.RZ
        off = np.random.default_rng(len(positions)).uniform(-1, 1, (2, *angles.shape)) * 2.0**-21.5
        off = np.where(angles == 0, 0.0, off)
        return (np.cos(near) + off[0]).astype(F), (np.sin(near) + off[1]).astype(F)


class CudaPort(FastTurnsPort, TF32Port):
    """ggml's on a GPU, more than 16 rows (mmq.cuh): blocks of 32 with float32 scales, attention by cuBLAS."""

    def in_blocks(self, x: Array) -> Array:
        blocks = x.astype(F).reshape(len(x), -1, 32)
        inverse = F(127) * (F(1) / np.abs(blocks).max(-1, keepdims=True))
        return (self.whole(blocks * inverse) * (F(1) / inverse)).reshape(x.shape)

    def whole(self, ratio: Array) -> Array:
        """C's `roundf`."""
        return np.copysign(np.floor(np.abs(ratio) + F(0.5)), ratio)

    def product(self, x: Array, weight: Array) -> Array:
        return self.in_blocks(x) @ weight.astype(F).T

    def angles(self, positions: Array) -> Array:
        c = self.config
        ratio = F(c.rope_theta ** (-2 / c.head_dim))
        powers = np.power(np.float64(ratio), np.arange(c.head_dim // 2)).astype(F)  # powf of a pair's number
        return np.asarray(positions.astype(F)[:, None] * powers)


class FewRowsCudaPort(CudaPort):
    """Up to 8 rows (mmvq.cu, quantize.cu): the scale in float16 beside the integers; TF32 loses its tail."""

    def in_blocks(self, x: Array) -> Array:
        blocks = x.astype(F).reshape(len(x), -1, 32)
        scale = np.abs(blocks).max(-1, keepdims=True) / F(127)
        whole = self.whole(blocks * (F(1) / scale))
        return (whole * scale.astype(np.float16).astype(F)).reshape(x.shape)

    def multiplied(self, x: Array) -> Array:
        return (np.ascontiguousarray(x, F).view(np.uint32) & np.uint32(0xFFFFE000)).view(F)


class ChosenPort(TF32Port):
    """TF32 as cuBLAS takes it: not for attention's narrow heads, and of products for some sizes alone."""

    def product(self, x: Array, weight: Array) -> Array:
        return super().product(x, weight) if x.shape[-1] == 64 else Port.product(self, x, weight)

    def multiplied(self, x: Array) -> Array:
        return x


PROGRAMS: dict[str, tuple[type[Port], str, dict[str, Any]]] = {
    "_int_mm": (IntMmPort, "w8a8-per-token", {}),
    "_scaled_mm": (ScaledMmPort, "fp8-per-tensor", {}),
    "_int_mm on a GPU": (ByInversePort, "w8a8-per-token", {}),
    "fp8 on a GPU": (HopperPort, "fp8-per-tensor-hopper", {}),
    "fp8 cast": (CastPort, "fp8-per-tensor", {}),
    "runq.c": (RunQPort, "runq.c", {"ffn": 128}),
    "ggml with AVX2": (AvxPort, "llama.cpp-cpu", {"type": "Q8_0"}),
    "runq.c in torch": (TorchRunQPort, "runq.c", {"ffn": 128}),
    "ggml with a half cache": (HalfCacheAvxPort, "llama.cpp-cpu-f16-cache", {"type": "Q8_0"}),
    "ggml with flash attention": (FlashAvxPort, "llama.cpp-cpu-flash", {"type": "Q8_0"}),
    "ggml on a GPU": (CudaPort, "llama.cpp-cuda", {"type": "Q8_0"}),
    "ggml on a GPU, few rows": (FewRowsCudaPort, "llama.cpp-cuda", {"type": "Q8_0"}),
    "candle": (CandlePort, "candle-quantized", {"type": "Q8_0"}),
    "gguf": (GgufPort, "candle-quantized", {"type": "Q8_0"}),
}
"""A program, its profile, and what a model of it needs."""

ALIKE = {"candle-quantized": ("candle-quantized", "llama.cpp-cpu")}
"""Profiles that a small model does not tell apart: they differ where a number lies between two integers."""


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_passes_as_declared_and_is_found_out_else(program: str, tmp_path: Path) -> None:
    port, profile, sizes = PROGRAMS[program]
    n = 6 if port is FewRowsCudaPort else 24  # torch's integer product wants more than 16 rows
    model = seeded(n_layers=1, **sizes)
    partial = port is FlashAvxPort  # a fused kernel shows no scores
    declared = compared(port(model), tmp_path, n, arithmetic=profile, partial=partial)
    assert declared.verdict == "pass", declared.reason
    assert declared.arithmetic is not None and declared.arithmetic.costs > 1e-3
    found = compared(port(model), tmp_path, n, partial=partial)
    assert (found.verdict, found.exit_code) == ("arithmetic", 3), found.reason
    assert found.reason.rpartition("--arithmetic ")[2] in ALIKE.get(profile, (profile,))


@pytest.mark.parametrize("port", [TF32Port, ChosenPort])
def test_what_cublas_makes_in_float32_is_as_right_as_tf32(port: type[Port], tmp_path: Path) -> None:
    program = port(seeded(n_layers=2))
    declared = compared(program, tmp_path, 12, arithmetic="tf32")
    assert declared.verdict == "pass", declared.reason
    found = compared(program, tmp_path, 12)
    assert (found.verdict, found.exit_code) == ("arithmetic", 3), found.reason


@pytest.mark.parametrize(("n", "first"), [(12, 0), (40, 0), (6, 3000)])
def test_fast_cosines_are_found_out_and_told(n: int, first: int, tmp_path: Path) -> None:
    program = FastTurnsPort(seeded(n_layers=2))
    found = compared(program, tmp_path, n, first=first)
    if first == 0:  # far out angles in float32, which everybody's are, leave as much
        assert (found.verdict, found.exit_code) == ("arithmetic", 3), found.reason
        assert "cosines and sines by a GPU's fast instructions" in found.reason
    declared = compared(program, tmp_path, n, first=first, arithmetic={"name": "mine", "turns": "sin.approx"})
    assert declared.verdict == "pass", declared.reason


class OtherTheta(FastTurnsPort):
    """Another theta than the file's, by a thousandth."""

    def frequencies(self) -> Array:
        pairs = np.arange(self.config.head_dim // 2)
        return super().frequencies() * 1.001 ** (-2 * pairs / self.config.head_dim)


def test_fast_cosines_hide_no_other_theta(tmp_path: Path) -> None:
    for declared in ({"name": "mine", "turns": "sin.approx"}, None):
        report = compared(OtherTheta(seeded(n_layers=1)), tmp_path, 12, arithmetic=declared)
        assert report.verdict == "fail" and report.first_wrong is not None
        assert report.first_wrong.name == "blk.0.q_rope"
        assert "theta" in report.reason, report.reason


class CoarseScores(ChosenPort):
    """What TF32 is no excuse for: queries in bfloat16."""

    def multiplied(self, x: Array) -> Array:
        return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().float().numpy()


def test_what_is_neither_is_not_right(tmp_path: Path) -> None:
    report = compared(CoarseScores(seeded(n_layers=2)), tmp_path, 12, arithmetic="tf32")
    assert report.verdict == "fail" and report.first_wrong is not None
    assert report.first_wrong.name == "blk.0.attn_scores"


def test_habits_of_run_c_are_float32_whether_it_says_so_or_not(tmp_path: Path) -> None:
    for declared in ("run.c", None):
        assert compared(RunPort(seeded(n_layers=1)), tmp_path, 24, arithmetic=declared).verdict == "pass"


@pytest.mark.parametrize("port", [FusedBfloat16Port, FusedFloat16Port])
def test_fused_steps_in_half_precision_are_found_out_one_by_one(port: type[Port], tmp_path: Path) -> None:
    program = port(seeded(n_layers=1))
    report = compared(program, tmp_path, 9)
    assert (report.verdict, report.exit_code) == ("arithmetic", 3), report.reason
    assert "steps between in" in report.reason
    assert report.arithmetic is not None
    again = read_arithmetic(report.arithmetic.option.removeprefix("--arithmetic ").strip("'"))
    assert (again.norm_scaled, again.silu, again.rotation) == ("float32", "float32", "float32")
    assert compared(program, tmp_path, 9, arithmetic=again).verdict == "pass"


def few(name: str) -> bool:
    """What a user records who does not look inside blocks."""
    return name.endswith((".out", "embd", "output_norm", "logits"))


def test_fused_half_precision_is_found_of_few_points_too(tmp_path: Path) -> None:
    report = compared(FusedBfloat16Port(seeded(n_layers=2)), tmp_path, 12, kept=few)
    assert (report.verdict, report.exit_code) == ("arithmetic", 3), report.reason
    assert "steps between in bfloat16" in report.reason


class FusedSwap(FusedBfloat16Port):
    """Gate and up in each other's place, in fused half precision."""

    def gated(self, gate: Array, up: Array) -> Array:
        return self.rounded(Port.gated(self, up, gate))


@pytest.mark.parametrize(("kept", "point"), [(lambda name: True, "ffn_swiglu"), (few, "out")])
def test_a_bug_behind_half_precision_is_named_where_it_is(kept: Any, point: str, tmp_path: Path) -> None:
    """What may fall either way adds up to little over a block, declared or not, and hides no bug."""
    report = compared(FusedSwap(seeded(n_layers=2)), tmp_path, 12, kept=kept)
    assert (report.verdict, report.exit_code) == ("fail", 1)
    assert report.first_wrong is not None and report.first_wrong.name == f"blk.0.{point}"
    assert report.diagnoses[0].named[0].name in ("ffn-activation-of-up", "ffn-gate-up-swapped")
    assert "behind arithmetic: " in report.reason and "bfloat16" in report.reason
