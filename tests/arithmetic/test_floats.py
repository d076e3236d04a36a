"""Rounding to fewer bits: worked by hand, and as torch casts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llama_ckpt.arithmetic.floats import FLOATS, high_and_low, to_float
from llama_ckpt.arithmetic.formats import rounded


@pytest.mark.parametrize(
    ("name", "x", "wanted"),
    [
        ("float16", 1 + 2.0**-11, 1.0),  # in the middle of 1 and the next: the even one
        ("float16", 1 + 3 * 2.0**-11, 1 + 2.0**-9),
        ("float16", 65519.0, 65504.0),
        ("float16", 65520.0, np.inf),
        ("float16", 2.0**-25, 0.0),  # below the smallest, of two equally near ones the even
        ("float16", 3 * 2.0**-25, 2.0**-23),
        ("bfloat16", 1 + 2.0**-8, 1.0),
        ("bfloat16", -(1 + 3 * 2.0**-8), -(1 + 2.0**-6)),
        ("tf32-away", 1 + 2.0**-11, 1 + 2.0**-10),
        ("tf32-away", -(1 + 2.0**-11), -(1 + 2.0**-10)),
        ("tf32", 1 + 2.0**-11, 1.0),
        ("tf32-cut", 1 + 2.0**-10 - 2.0**-23, 1.0),
        ("fp8_e4m3", 1.0625, 1.0),
        ("fp8_e4m3", 1.1875, 1.25),
        ("fp8_e4m3", 500.0, 448.0),
        ("fp8_e4m3", 2.0**-10, 0.0),
        ("fp8_e4m3", 1.5 * 2.0**-9, 2.0**-8),
        ("fp8_e5m2", 1.125, 1.0),
        ("fp8_e5m2", -70000.0, -57344.0),
        ("float32", 1 + 2.0**-24, 1.0),
        ("float16", -0.0, -0.0),
        ("float16", -np.inf, -np.inf),
    ],
)
def test_numbers_worked_by_hand(name: str, x: float, wanted: float) -> None:
    got = to_float(np.array([x]), name)[0]
    assert got == wanted
    assert np.signbit(got) == np.signbit(wanted)


def test_a_nan_stays_one() -> None:
    for name in FLOATS:
        assert np.isnan(to_float(np.array([np.nan]), name)[0])


def numbers() -> np.ndarray:
    """float32 numbers of every size, among them all that bits can say."""
    g = np.random.default_rng(5)
    usual = g.standard_normal(20_000) * np.exp2(g.integers(-45, 8, 20_000))
    bits = g.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate([usual.astype(np.float32), bits[np.isfinite(bits)]])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)],
)
def test_they_are_torchs(name: str, dtype: torch.dtype) -> None:
    x = numbers()
    wanted = torch.from_numpy(x).to(dtype).double().numpy()
    np.testing.assert_array_equal(to_float(x.astype(np.float64), name), wanted)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)]
)
def test_fp8_is_torchs_within_its_range(name: str, dtype: torch.dtype) -> None:
    x = numbers()
    x = x[np.abs(x) <= FLOATS[name].largest]
    wanted = torch.from_numpy(x).to(dtype).double().numpy()
    np.testing.assert_array_equal(to_float(x.astype(np.float64), name), wanted)


def test_high_and_low_have_twice_the_digits() -> None:
    x = 1 + np.random.default_rng(0).random(1000)
    assert np.abs(high_and_low(x, "float16") - x).max() <= 2.0**-22
    assert np.abs(to_float(x, "float16") - x).max() > 2.0**-12
    np.testing.assert_array_equal(rounded(x, "float16+float16"), high_and_low(x, "float16"))


def test_fp8_takes_its_scale_from_a_row_or_from_all() -> None:
    x = np.array([[448.0, 1.0625], [4.48, 1.0]])
    np.testing.assert_array_equal(rounded(x, "fp8_e4m3 per tensor"), [[448.0, 1.0], [4.5, 1.0]])
    scale = float(np.float32(4.48) / np.float32(448))
    np.testing.assert_allclose(rounded(x, "fp8_e4m3 per row"), [[448.0, 1.0], [4.48, 96 * scale]], rtol=1e-7)
    np.testing.assert_array_equal(rounded(np.zeros((2, 2)), "fp8_e4m3 per row"), 0)
