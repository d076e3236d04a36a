"""Norms in half precision: a sum of squares made in it is named, and another epsilon, each as itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reference_dumps import embedded_model
from tests.comparing.ported_llama import Array, F, Port, compared, seeded
from tests.comparing.rounding_ports import Bfloat16Port, Float16Port

HALF: dict[str, type[Any]] = {"float16": Float16Port, "bfloat16": Bfloat16Port}
LEAST = {"float16": 1e-6, "bfloat16": 1e-4}
"""Epsilons that put a norm off by less than the precision leaves."""

MADE = "the norm's sum of squares and its root are made in {}, where float32 is wanted"


def at_once(x: torch.Tensor) -> torch.Tensor:
    return x.pow(2).mean(-1, keepdim=True)


def one_by_one(x: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(x[:, :1])
    for column in x.T:
        total = total + (column * column)[:, None]
    return total / x.shape[1]


def by_its_length(x: torch.Tensor) -> torch.Tensor:
    length: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    mean: torch.Tensor = (length / x.shape[1] ** 0.5) ** 2
    return mean


def with_norm(base: type[Any], mean: Any) -> type[Port]:
    """A program in half precision whose norm takes its mean of squares of the tensor as it is."""

    def norm(self: Any, x: Array, weight: Array) -> Array:
        half = self.t(x)
        scaled = half * torch.rsqrt(mean(half) + self.config.rms_norm_eps)
        return np.asarray((self.t(weight) * scaled).float().numpy())

    return type("HalfNorm", (base,), {"norm": norm})


def with_epsilon(base: type[Any], eps: float) -> type[Port]:
    """One whose norm is in float32, with another epsilon."""

    def norm(self: Any, x: Array, weight: Array) -> Array:
        wide = torch.from_numpy(np.ascontiguousarray(x, F))
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return np.asarray((self.t(weight) * scaled.to(self.dtype)).float().numpy())

    return type("OtherEpsilon", (base,), {"norm": norm})


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("mean", [at_once, one_by_one, by_its_length])
@pytest.mark.parametrize("width", [64, 256])
def test_a_sum_of_squares_in_half_precision_is_named(
    dtype: str, mean: Any, width: int, tmp_path: Path
) -> None:
    program = with_norm(HALF[dtype], mean)(seeded(n_layers=1, width=width))
    report = compared(program, tmp_path, 12, arithmetic=f"{dtype}-torch")
    assert report.exit_code == 1 and report.first_wrong is not None
    assert report.first_wrong.name == "blk.0.attn_norm"
    assert MADE.format(dtype) in report.reason, report.reason
    # What is left is as small as rounding leaves.
    assert report.diagnoses[0].identified[0].explained
    assert report.diagnoses[0].identified[0].left < 1e-4
    by_its_limits = compared(program, tmp_path, 12, dtype=dtype)
    if by_its_limits.first_wrong is not None and by_its_limits.first_wrong.name == "blk.0.attn_norm":
        assert MADE.format(dtype) in by_its_limits.reason, by_its_limits.reason
        assert "epsilon" not in by_its_limits.reason
    else:
        assert dtype == "bfloat16" or by_its_limits.exit_code == 0


def test_a_sum_in_float16_fails_as_such_on_the_embedded_model(tmp_path: Path) -> None:
    def few(name: str) -> bool:
        return name == "embd" or name.startswith("blk.0.")

    program = with_norm(Float16Port, at_once)(embedded_model())
    report = compared(program, tmp_path, 12, kept=few, partial=True, dtype="float16")
    assert report.exit_code == 1
    assert MADE.format("float16") in report.reason, report.reason


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("eps", [1e-6, 1e-4, 1e-3])
@pytest.mark.parametrize("declared", ["arithmetic", "dtype"])
def test_another_epsilon_keeps_its_name(dtype: str, eps: float, declared: str, tmp_path: Path) -> None:
    program = with_epsilon(HALF[dtype], eps)(seeded(n_layers=1))
    said: dict[str, Any] = {declared: dtype if declared == "dtype" else f"{dtype}-torch"}
    report = compared(program, tmp_path, 12, **said)
    if declared == "dtype" and eps <= LEAST[dtype]:
        assert report.exit_code == 0
        return
    assert f"the norm's epsilon is {eps:.3g} instead of 1e-05" in report.reason, report.reason
    assert "sum of squares" not in report.reason
