"""Numbers in float16 and an 8-bit rest, beside torch's own conversions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llama_ckpt.arithmetic.formats import rounded
from llama_ckpt.arithmetic.profiles import PROFILES, arithmetic_of
from llama_ckpt.arithmetic.rests import RESTS, product_in_parts, two_parts
from llama_ckpt.arithmetic.rounded_oracle import rounded_oracle

DTYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32).astype(np.float64)


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.asarray(x @ w.T)


@pytest.mark.parametrize("name", RESTS)
def test_both_parts_are_torchs(name: str) -> None:
    x = torch.from_numpy(numbers(5, 64))
    form, lift = RESTS[name]
    if not lift:  # a power of two that takes the largest to the format's largest at most
        lift = 2.0 ** np.floor(np.log2(448 / float(x.abs().max())))
    high = x.half().double()
    low = ((x - high) * 2048 * lift).float().to(DTYPES[form]).double() / (2048 * lift)
    coarse = (high * lift).float().to(DTYPES[form]).double() / lift
    found = two_parts(x.numpy(), name)
    for part, wanted in ((found.high, high), (found.low, low), (found.coarse, coarse)):
        assert np.array_equal(part, wanted.numpy())
    assert np.array_equal(rounded(x.numpy(), name), (high + low).numpy())


def test_a_product_misses_that_of_both_rests_and_what_8_bits_take() -> None:
    x, w = two_parts(numbers(4, 96), "float16+fp8_e4m3"), two_parts(numbers(7, 96)[::-1], "float16+fp8_e5m2")
    found = product_in_parts(product, x, w)
    coarse = x.high @ w.high.T + x.coarse @ w.low.T + x.low @ w.coarse.T
    assert np.allclose(found, coarse, rtol=1e-14)
    off = np.linalg.norm(found - x.whole @ w.whole.T) / np.linalg.norm(found)
    assert 1e-6 < off < 1e-4


def test_the_oracle_multiplies_in_parts_where_both_have_rests() -> None:
    x, w = numbers(20, 64), numbers(48, 64)
    by = rounded_oracle(PROFILES["high-packed"])
    exact, row = x @ w.T, two_parts(x, "float16+fp8_e4m3")
    parts = product_in_parts(product, row, two_parts(w, "float16+fp8_e4m3 per tensor"))
    assert np.array_equal(by.linear(x, w), parts)
    into_stream = by.to_stream(x, w)
    assert not np.array_equal(into_stream, parts)  # coarser: with two digits after the leading one
    assert np.linalg.norm(into_stream - exact) > 1.3 * np.linalg.norm(parts - exact)


def test_what_goes_into_the_stream_may_be_rounded_otherwise() -> None:
    mine = arithmetic_of({"activations": "float16", "stream_activations": {"Q4_0": "bfloat16"}})
    assert [mine.activation("Q4_0", stream=stream) for stream in (False, True)] == ["float16", "bfloat16"]
    assert mine.activation("F32", stream=True) == "float16"
