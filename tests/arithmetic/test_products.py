"""Products as programs sum them, worked by hand."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from llama_ckpt.arithmetic.products import parsed_sums, summed
from llama_ckpt.oracle.block_parts import block_minima, half_scaled

HALF = np.float16


def exact(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.asarray(x @ w.T)


def test_the_words_for_sums() -> None:
    assert parsed_sums("float16 every 16") == ("float16", 16, 0, 1)
    assert parsed_sums("bfloat16 every 8 in 4 parts") == ("bfloat16", 8, 0, 4)
    assert parsed_sums("float16 in 512 strands") == ("float16", 1, 512, 1)
    for wrong in ("float16", "float16 every 0", "float16 every", "float16 in 4 parts"):
        with pytest.raises(ValueError, match=wrong):
            parsed_sums(wrong)


def test_a_running_sum_loses_what_is_small() -> None:
    """2048 + 1 is a tie in float16 and stays 2048; two ones at a time are not lost."""
    x, w = np.array([[2048.0, 1, 1, 1, 1]]), np.ones((1, 5))
    assert summed(exact, x, w, "float16 every 1").item() == 2048
    assert summed(exact, x, w, "float16 every 2").item() == 2052  # 2049 -> 2048, + 2, + 1 -> the even 2052
    assert summed(exact, x, w, "float32").item() == 2052


def test_parts_are_added_one_by_one() -> None:
    x, w = np.array([[2048.0, 1, 1, 1]]), np.ones((1, 4))
    assert summed(exact, x, w, "float16 every 1").item() == 2048
    assert summed(exact, x, w, "float16 every 1 in 2 parts").item() == 2050  # (2048 + 1 -> 2048) + (1 + 1)


def test_a_product_and_its_sum_are_rounded_once() -> None:
    x, w = np.array([[1 + 2.0**-10]]), np.array([[1 + 2.0**-10]])
    assert summed(exact, x, w, "float16 in 64 strands").item() == float(HALF((1 + 2.0**-10) ** 2))


def test_strands_are_as_few_as_keep_the_sums_short() -> None:
    """Of 130 terms in at most 128 strands: two rounds, for which 64 are too few; term 128 joins term 0."""
    x = np.zeros((1, 130))
    x[0, [0, 128]] = 2048, 1
    assert summed(exact, x, np.ones((1, 130)), "float16 in 128 strands").item() == 2048
    x[0, [64, 128]] = 1, 0
    assert summed(exact, x, np.ones((1, 130)), "float16 in 128 strands").item() == 2049
    assert summed(exact, x[:, :128], np.ones((1, 128)), "float16 in 128 strands").item() == 2049


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_minimum_is_the_value_of_integer_zero(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    raw = gguf.quants.quantize(np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32), kind)
    minima = block_minima(raw, name)
    assert minima is not None
    zeroed = raw.copy().reshape(3, 2, -1)
    zeroed[..., {"Q4_0": 2, "Q4_1": 4, "Q5_0": 2, "Q5_1": 4}[name] :] = 0  # all integers
    values = gguf.quants.dequantize(zeroed.reshape(3, -1), kind)
    np.testing.assert_array_equal(values.reshape(3, 2, 32), np.repeat(minima[..., None], 32, axis=-1))
    assert block_minima(raw, "Q8_0") is None


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q5_K"])
def test_half_scales_are_the_files_own_rounded(name: str) -> None:
    """Random bytes: an integer and its scales are found again in each value."""
    kind = gguf.GGMLQuantizationType[name]
    size = gguf.GGML_QUANT_SIZES[kind][1]
    g = np.random.default_rng(3)
    raw = g.integers(0, 256, (4, 2, size), dtype=np.uint8)
    halves = (0.001 + g.random((4, 2, 2)) / 100).astype(HALF).view(np.uint8).reshape(4, 2, 4)
    raw[..., 80 : 84 if name == "Q2_K" else 84][..., :4] = halves if name == "Q2_K" else raw[..., 80:84]
    if name != "Q2_K":
        raw[..., :4] = halves
    raw = raw.reshape(4, -1)
    values = gguf.quants.dequantize(raw, kind).astype(np.float64)
    rounded, minima = half_scaled(values, raw, name), block_minima(raw, name)
    error = np.linalg.norm(rounded - values) / np.linalg.norm(values)
    assert 1e-5 < error < 5e-4
    assert np.abs(rounded - values).max() <= 2.0**-11 * (np.abs(values) + 2 * np.abs(minima).max()).max()
    group = 16 if name == "Q2_K" else 32
    least = rounded.reshape(4, -1, group).min(axis=-1)
    assert np.mean(np.isclose(least, minima, rtol=0, atol=1e-12)) > 0.3  # where integer 0 occurs
